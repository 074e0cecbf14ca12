"""Flags of `train`: each leads to a key, means what timm means by it, stands in YAML, and is refused where it is unknown."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from algorithm.commands.flags import ALL, BY_NAME
from algorithm.commands.resolving import complete, tree_of
from algorithm.commands.train import parser
from algorithm.errors import ConfigError
from algorithm.experiment import Experiment
from algorithm.schema import section_of

# every flag that the guides use, with a value and what it must come to
GUIDES: list[tuple[str, str, Any]] = [
    ("--dataset torch/cifar100 --data-dir d", "data.name", "cifar100"), ("--dataset torch/cifar100 --data-dir d",
                                                                         "data.data_root", "d"),
    ("--dataset torch/cifar10 --data-dir d --dataset-download", "data.download", True),
    ("--data_path d", "data.name", "imagefolder"), ("--model s16", "model.name", "s16"),
    ("--model s16 --pretrained", "model.weights", "timm"), ("--num-classes 7", "model.num_classes", 7),
    ("--img-size 64", "model.img_size", 64), ("--input-size 3 64 64", "model.img_size", 64),
    ("--variant register", "model.variant", "register"), ("--use_gram_lowrank_mhsa", "model.gram.enabled", True),
    ("--gram_lowrank_rank 8", "model.gram.rank", 8), ("--gram_lowrank_rank 8", "model.gram.enabled", True),
    ("--gram_lowrank_a_init_std 0.02", "model.gram.std", 0.02), ("-b 32", "recipe.batch", 32),
    ("--batch-size 32", "recipe.batch", 32), ("-vb 16", "recipe.batch_eval", 16),
    ("--validation-batch-size 16", "recipe.batch_eval", 16), ("--grad-accum-steps 4", "recipe.accum_steps", 4),
    ("--opt adamw", "recipe.optim.opt", "adamw"), ("--lr 5e-4", "recipe.optim.lr", 5e-4),
    ("--weight-decay .05", "recipe.optim.weight_decay", 0.05), ("--opt-eps 1e-6", "recipe.optim.opt_eps", 1e-6),
    ("--opt-betas 0.9 0.95", "recipe.optim.opt_betas", [0.9, 0.95]), ("--momentum 0.8", "recipe.optim.momentum", 0.8),
    ("--clip-grad 1", "recipe.optim.clip_grad", 1.0), ("--clip-mode agc", "recipe.optim.clip_mode", "agc"),
    ("--layer-decay 0.75", "recipe.optim.layer_decay", 0.75),
    ("--opt-kwargs nesterov=True", "recipe.extra", {"nesterov": True}),
    ("--sched step", "recipe.schedule.sched", "step"), ("--epochs 9", "recipe.schedule.epochs", 9),
    ("--warmup-epochs 2", "recipe.schedule.warmup_epochs", 2.0), ("--warmup-lr 1e-5", "recipe.schedule.warmup_lr", 1e-5),
    ("--min-lr 1e-5", "recipe.schedule.min_lr", 1e-5), ("--cooldown-epochs 3", "recipe.schedule.cooldown_epochs", 3),
    ("--decay-epochs 30", "recipe.schedule.decay_epochs", 30.0), ("--decay-rate 0.1", "recipe.schedule.decay_rate", 0.1),
    ("--decay-milestones 3 6", "recipe.schedule.decay_milestones", [3, 6]),
    ("--aa rand-m9-mstd0.5-inc1", "recipe.augment.aa", "rand-m9-mstd0.5-inc1"),
    ("--color-jitter 0.3", "recipe.augment.color_jitter", 0.3), ("--hflip 0", "recipe.augment.hflip", 0.0),
    ("--vflip 0.1", "recipe.augment.vflip", 0.1), ("--scale 0.5 1", "recipe.augment.scale", [0.5, 1.0]),
    ("--ratio 0.9 1.1", "recipe.augment.ratio", [0.9, 1.1]), ("--no-aug", "recipe.augment.policy", "none"),
    ("--reprob 0.25", "recipe.augment.reprob", 0.25), ("--reprob 0.25 --remode const", "recipe.augment.remode", "const"),
    ("--reprob 0.25 --recount 2", "recipe.augment.recount", 2), ("--mixup 0.8", "recipe.augment.mixup", 0.8),
    ("--cutmix 1", "recipe.augment.cutmix", 1.0), ("--mixup-prob 0.5", "recipe.augment.mixup_prob", 0.5),
    ("--mixup-switch-prob 0.3", "recipe.augment.mixup_switch_prob", 0.3),
    ("--mixup-mode elem", "recipe.augment.mixup_mode", "elem"), ("--smoothing 0.1", "recipe.augment.smoothing", 0.1),
    ("--train-interpolation bicubic", "recipe.augment.interpolation", "bicubic"),
    ("--crop-pct 1", "recipe.augment.crop_pct", 1.0), ("--bce-loss", "recipe.loss", "bce"),
    ("--drop-path 0.2", "recipe.drop_path", 0.2), ("--amp", "recipe.amp", True), ("--no_amp", "recipe.amp", False),
    ("--amp-dtype float16", "recipe.amp_dtype", "float16"), ("--torchcompile", "recipe.compile", True),
    ("--torchcompile inductor", "recipe.compile", True), ("--model-ema", "recipe.ema.enabled", True),
    ("--model-ema-decay 0.99", "recipe.ema.decay", 0.99), ("--model-ema-decay 0.99", "recipe.ema.enabled", True),
    ("--model-ema-warmup", "recipe.ema.warmup", True),
    ("--kd-model-name vit_tiny_patch16_224", "recipe.distill.teacher", "vit_tiny_patch16_224"),
    ("--kd-model-name vit_tiny_patch16_224", "recipe.distill.tau", 4.0),
    ("--kd-model-name vit_tiny_patch16_224 --kd-temperature 2", "recipe.distill.tau", 2.0),
    ("--kd-model-name vit_tiny_patch16_224 --task-loss-weight 0.75", "recipe.distill.alpha", 0.25),
    ("--seed 5", "recipe.seed", 5), ("--seed 5", "model.seed", 5),
    ("--workers 3", "recipe.workers", 3), ("-j 3", "recipe.workers", 3), ("--num_workers 3", "recipe.workers", 3),
    ("--pin-mem", "recipe.pin_memory", True), ("--log-interval 7", "recipe.progress_every", 7),
    ("--checkpoint-hist 2", "recipe.keep", 2), ("--save_freq 5", "recipe.save_freq", 5), ("--output o", "output.dir", "o"),
    ("--experiment e", "output.name", "e"), ("--resume f", "output.resume", "f"), ("--fresh", "output.fresh", True),
    ("--record_trace 4", "output.record_trace", 4), ("--log-wandb", "monitor.wandb", "online"),
    ("--no_wandb", "monitor.wandb", "off"), ("--wandb-project p", "monitor.project", "p"),
    ("--analysis_freq 3", "monitor.analysis_freq", 3), ("--spec-monitor", "monitor.spec_monitor", True),
    ("--spec-monitor --spec-every 9", "monitor.spec_every", 9), ("--spec-monitor --spec-topk 2", "monitor.spec_topk", 2),
    ("--spec-monitor --spec-interval 2", "monitor.spec_interval", 2),
    ("--spec-monitor --spec-targets attn.qkv,mlp.fc1", "monitor.spec_targets", ["attn.qkv", "mlp.fc1"]),
    ("--spec-monitor --spec-targets attn.qkv mlp.fc1", "monitor.spec_targets", ["attn.qkv", "mlp.fc1"]),
    ("--spec-monitor --spec-on-cpu", "monitor.spec_on_cpu", True),
]


def experiment(*argv: str) -> Experiment:
    options: argparse.Namespace = parser().read(argv)
    tree = tree_of(options.config, vars(options), options.overrides)
    return complete({**tree, "model": {"img_size": 32, "num_classes": 10, **tree.get("model", {})}})    # asks nobody


def at(section: Any, key: str) -> Any:
    for part in key.split("."):
        section = getattr(section, part)
    return section


@pytest.mark.parametrize(("flags", "key", "value"), GUIDES)
def test_a_flag_of_the_guides_sets_its_key(flags: str, key: str, value: Any) -> None:
    assert at(experiment(*flags.split()), key) == value
    assert at(experiment(*(f.replace("_", "-") if f.startswith("--") else f for f in flags.split())), key) == value


def test_every_flag_leads_to_a_key_and_no_name_is_taken_twice() -> None:
    assert len(BY_NAME) == sum(len(f.all_names) for f in ALL)
    for flag in ALL:
        for key in flag.keys.split(","):
            *sections, last = key.split(".")
            here: Any = Experiment
            for name in sections:
                here = section_of(here.model_fields[name].annotation)
            assert last in here.model_fields, flag


def test_every_flag_of_the_table_was_tried() -> None:
    tried = {BY_NAME[word.lstrip("-").replace("-", "_")].dest for flags, _, _ in GUIDES for word in flags.split()
             if word.startswith("-")}
    plain = {"patch_size", "gp", "model_kwargs", "initial_checkpoint", "device", "threads", "lr_base", "lr_base_size",
             "lr_base_scale", "base_lr", "total_steps", "warmup_steps", "eval_every", "checkpoint_every"}
    assert {f.dest for f in ALL} - tried == plain


@pytest.mark.parametrize(("argv", "match"), [
    (["--epoch", "3"], "unknown flag --epoch .*'--epochs'"), (["--learning-rate", "1"], "unknown flag --learning-rate"),
    (["--channels-last"], "unknown flag --channels-last"), (["--smooting=0.1"], "'--smoothing'"),
    (["stray"], None)])
def test_what_is_unknown_is_refused_with_the_nearest(argv: list[str], match: str | None,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    if match is None:
        with pytest.raises(ConfigError, match="not an override"):
            experiment(*argv)
        return
    with pytest.raises(SystemExit) as end:
        experiment(*argv)
    text = capsys.readouterr().err
    assert end.value.code == 2 and len(text.splitlines()) == 1
    assert re.search(match, text), text


@pytest.mark.parametrize(("argv", "match"), [
    (["--lr", "fast"], "recipe.optim.lr.*'fast'"), (["--log-wandb", "--no-wandb"], "--log-wandb and --no-wandb both set"),
    (["--dataset", "tfds/mnist"], "TensorFlow"), (["--dataset", "torch/cifar1000"], "cifar100"),
    (["--dataset", "digits", "--data-dir", "x"], "leave one out"), (["--torchcompile", "onnx"], "inductor"),
    (["--input-size", "1", "28", "28"], "RGB"), (["recipe.optm.lr=1"], "nearest known: 'optim'"),
    (["--opt-kwargs", "nesterov"], "key=value"), (["--epochs", "3", "--total-steps", "5"], "give one")])
def test_what_means_nothing_is_refused_in_one_line(argv: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        experiment(*argv)
    assert "\n" not in str(caught.value)


def test_the_command_line_wins_over_files_and_overrides_over_all(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("epochs: 3\nrecipe: {batch: 4, optim: {opt: adamw}}\n")
    (tmp_path / "mine.yaml").write_text("include: base.yaml\nbatch-size: 5\nsmoothing: 0.2\n")
    got = experiment("--config", str(tmp_path / "mine.yaml"), "--smoothing", "0.3", "--batch-size", "6", "recipe.batch=7")
    assert (got.recipe.batch, got.recipe.augment.smoothing, got.recipe.schedule.epochs) == (7, 0.3, 3)
    assert got.recipe.optim.opt == "adamw"
    assert experiment("--config", str(tmp_path / "mine.yaml")).recipe.batch == 5
    assert experiment("--config", str(tmp_path / "mine.yaml"), "--total-steps", "9").recipe.schedule.epochs is None


def test_a_flag_of_several_values_takes_no_override() -> None:
    got = experiment("--scale", "0.5", "1", "recipe.batch=2", "--opt-betas", "0.9", "0.99", "recipe.augment.hflip=0")
    assert (got.recipe.batch, got.recipe.augment.scale, got.recipe.augment.hflip) == (2, [0.5, 1.0], 0)


def test_the_ancestors_words_stand_beside_flags(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("""\
net_config: {net_name: vit_small_patch16_224, model_type: fp}
backward_config: {enable_backward_config: 1, n_bias_update: 8, n_weight_update: 8, vit_layer_types: [attention, head]}
epochs: 3
batch-size: 16
recipe: {keep: 2}
""")
    got = experiment("--config", str(tmp_path / "old.yaml"), "--opt", "adamw")
    assert (got.model.name, got.plan.count, got.plan.n_weight_update) == ("vit_small_patch16_224", "layers", 8)
    assert (got.recipe.schedule.epochs, got.recipe.batch, got.recipe.keep, got.recipe.optim.opt) == (3, 16, 2, "adamw")


def test_a_flag_in_yaml_is_the_flag_on_the_command_line(tmp_path: Path) -> None:
    for flags, key, value in GUIDES:
        words = flags.split()
        lines = []
        while words:
            name, values = words.pop(0).lstrip("-"), []
            while words and not words[0].startswith("-"):
                values.append(words.pop(0))
            lines.append(f"{name}: {'true' if not values else values[0] if len(values) == 1 else values}".replace("'", ""))
        (tmp_path / "f.yaml").write_text("\n".join(lines))
        assert at(experiment("--config", str(tmp_path / "f.yaml")), key) == value, lines


# what timm's train.py writes as args.yaml of `--dataset torch/cifar100 --data-dir d --model vit_tiny_patch16_224
# --img-size 32 --opt adamw --lr-base 1e-3 --epochs 5 --amp --model-ema --model-ema-decay 0.99 --aa rand-m9-mstd0.5-inc1
# --mixup 0.8`
ARGS = """\
aa: rand-m9-mstd0.5-inc1
amp: true
amp_dtype: float16
aug_repeats: 0
aug_splits: 0
batch_size: 128
bce_loss: false
bn_eps: null
channels_last: false
checkpoint_hist: 10
class_map: ''
clip_grad: null
clip_mode: norm
color_jitter: 0.4
cooldown_epochs: 0
crop_pct: null
cutmix: 0.0
cutmix_minmax: null
data: null
data_dir: d
dataset: torch/cifar100
dataset_download: false
decay_epochs: 90
decay_milestones:
- 90
- 180
- 270
decay_rate: 0.1
dist_bn: reduce
drop: 0.0
drop_path: null
epochs: 5
experiment: ''
gp: null
img_size: 32
initial_checkpoint: ''
layer_decay: null
log_interval: 50
lr: null
lr_base: 0.001
lr_base_scale: ''
lr_base_size: 256
min_lr: 0
mixup: 0.8
mixup_mode: batch
mixup_prob: 1.0
mixup_switch_prob: 0.5
model: vit_tiny_patch16_224
model_ema: true
model_ema_decay: 0.99
model_ema_warmup: false
model_kwargs: {}
momentum: 0.9
no_aug: false
opt: adamw
output: ''
pin_mem: false
pretrained: false
ratio:
- 0.75
- 1.3333333333333333
recount: 1
remode: pixel
reprob: 0.0
resume: ''
scale:
- 0.08
- 1.0
sched: cosine
seed: 42
smoothing: 0.1
sync_bn: false
torchcompile: null
train_interpolation: random
tta: 0
warmup_epochs: 5
warmup_lr: 1.0e-05
weight_decay: 2.0e-05
workers: 4
"""


def test_timms_own_argument_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "args.yaml").write_text(ARGS)
    got = experiment("--config", str(tmp_path / "args.yaml"))
    assert (got.data.name, got.data.data_root) == ("cifar100", "d")
    assert (got.model.name, got.model.weights) == ("vit_tiny_patch16_224", "none")
    optim = got.recipe.optim
    assert (optim.opt, optim.lr) == ("adamw", None)
    assert (optim.base_lr, optim.lr_base_size, optim.lr_base_scale) == (1e-3, 256, "sqrt")
    assert got.recipe.ema.enabled and got.recipe.ema.decay == 0.99 and got.recipe.augment.color_jitter == 0
    assert (got.recipe.schedule.epochs, got.recipe.schedule.warmup_epochs, got.recipe.seed) == (5, 5, 42)
    for line, match in (("drop: 0.1", "drop: 0.1 .* no meaning here"), ("mixup: 0.8\nmixup_of_epoch: 3", "'mixup_of_epoch'"),
                        ("channels-first: true", "unknown key 'channels_first'")):
        (tmp_path / "args.yaml").write_text(ARGS.replace("drop: 0.0\n", "").replace("mixup: 0.8\n", "") + line + "\n")
        with pytest.raises(ConfigError, match=match):
            experiment("--config", str(tmp_path / "args.yaml"))


@pytest.mark.parametrize(("argv", "expected"), [
    (["--lr-base", "0.1"], (0.1, 256, "linear")), (["--lr-base", "0.1", "--opt", "lamb"], (0.1, 256, "sqrt")),
    (["--lr-base", "0.1", "--lr-base-size", "64", "--lr-base-scale", "linear", "--opt", "lamb"], (0.1, 64, "linear")),
    (["--config", "training/steps.yaml", "--lr-base", "0.1"], (0.1, 512, "linear")),
    (["--base-lr", "0.1"], (0.1, 512, "linear"))])
def test_the_base_rate_is_timms(argv: list[str], expected: tuple[float, int, str]) -> None:
    optim = experiment(*argv).recipe.optim
    assert (optim.base_lr, optim.lr_base_size, optim.lr_base_scale) == expected


def test_a_rate_as_it_is_takes_the_place_of_the_recipes_base_rate() -> None:
    optim = experiment("--config", "training/deit3.yaml", "--lr", "1e-3").recipe.optim
    assert optim.lr == 1e-3 and not optim.changed("base_lr", "lr_base_size", "lr_base_scale")
    assert experiment("--config", "training/dry_run.yaml", "--lr-base", "0.1").recipe.optim.lr is None


def test_another_policy_drops_the_augmentation_of_the_one_before() -> None:
    augment = experiment("--config", "training/strong_cifar100.yaml", "--no-aug").recipe.augment
    assert (augment.policy, augment.aa, augment.reprob, augment.mixup) == ("none", None, 0.0, 0.8)
    augment = experiment("--config", "training/deit3.yaml", "recipe.augment.policy=timm", "--aa", "3a").recipe.augment
    assert (augment.aa, augment.color_jitter, augment.mixup_mode) == ("3a", 0.0, "elem")


def test_a_plain_model_from_random_weights_and_all_images_unless_asked() -> None:
    got = experiment("--model", "s16", "--dataset", "digits")
    assert (got.model.weights, got.model.gram.enabled, got.model.head_init) == ("none", False, "timm")
    assert got.data.images_per_class is None and got.data.test_images is None


def test_classes_and_size_come_from_data_and_model(tmp_path: Path) -> None:
    from PIL import Image
    for part in ("train", "val"):
        for name in "abc":
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / f"{part}.png")
    got = complete({"model": {"name": "ti16"}, "data": {"name": "imagefolder", "data_root": str(tmp_path)}})
    assert got.model.num_classes == 3 and got.model.img_size == 224
    assert complete({"model": {"name": "vit_base_patch16_384"}, "data": {"name": "cifar100"}}).model.img_size == 384
    assert complete({"data": {"name": "cifar100"}}).model.num_classes == 100


