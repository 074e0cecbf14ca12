"""The ancestor's configuration: what its keys mean, layers counted by hand, what is refused, and the shipped files."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from algorithm import build_model, resolve_plan
from algorithm.ancestor import translate
from algorithm.config import CONFIGS, RunConfig, load_run_config, make_run_config
from algorithm.errors import AlgorithmError, ConfigError, PlanError
from algorithm.experiment import Experiment
from algorithm.models import ModelConfig, input_scale_shift
from algorithm.sparse import PlanConfig
from algorithm.sparse.merit import choose_plan
from algorithm.sparse.nearest import reduced_plans
from algorithm.sparse.plan import Slice, UpdatePlan
from compilation.capture import InputSpec
from compilation.pipeline import Compiler

SHIPPED = sorted(p.name for p in CONFIGS.glob("vit_small*.yaml"))
BACKWARD: dict[str, Any] = {"enable_backward_config": 1, "n_bias_update": 3, "n_weight_update": 3, "manual_weight_idx": None,
                            "vit_layer_types": ["attention", "head"], "weight_update_ratio": 0.25,
                            "weight_select_criteria": "magnitude+"}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build_model(ModelConfig(name="vit_tiny_patch16_224", img_size=32, patch_size=16, weights="none", num_classes=3,
                                   head_init="timm", gram={"enabled": False}, extra={"embed_dim": 24, "depth": 2,
                                                                                     "num_heads": 2}))


def config_of(tmp_path: Path, **sections: Any) -> RunConfig:
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(sections))
    return make_run_config([path])


def plan_of(tmp_path: Path, model: torch.nn.Module, **changes: Any) -> UpdatePlan:
    config = config_of(tmp_path, backward_config={k: v for k, v in {**BACKWARD, **changes}.items() if v != "absent"})
    assert config.plan.choose == "rule"
    return resolve_plan(config.plan.rule, model)


def columns(plan: UpdatePlan) -> dict[str, int | str]:
    return {n: len(c.index) if isinstance(c, Slice) else c for n, c in plan.parameters.items()}


def test_layers_are_counted_over_the_named_types(tmp_path: Path, model: torch.nn.Module) -> None:
    assert columns(plan_of(tmp_path, model)) == {
        "blocks.1.attn.qkv.weight": 6, "blocks.1.attn.qkv.bias": "all", "blocks.1.attn.proj.weight": 6,
        "blocks.1.attn.proj.bias": "all", "head.weight": 6, "head.bias": "all"}
    both = plan_of(tmp_path, model, vit_layer_types=["attention", "mlp"], n_bias_update=5, n_weight_update=2,
                   weight_update_ratio=0.5)
    assert columns(both) == {
        "blocks.0.mlp.fc2.bias": "all", "blocks.1.attn.qkv.bias": "all", "blocks.1.attn.proj.bias": "all",
        "blocks.1.mlp.fc1.weight": 12, "blocks.1.mlp.fc1.bias": "all", "blocks.1.mlp.fc2.weight": 48,
        "blocks.1.mlp.fc2.bias": "all"}


def test_manual_indices_and_ratios_are_of_layers(tmp_path: Path, model: torch.nn.Module) -> None:
    plan = plan_of(tmp_path, model, vit_layer_types=["attention", "mlp", "head"], manual_weight_idx="0-5-8",
                   n_weight_update="absent", weight_update_ratio="0.5-0.25-1.0", n_bias_update=1)
    assert columns(plan) == {"blocks.0.attn.qkv.weight": 12, "blocks.1.attn.proj.weight": 6, "head.weight": "all",
                             "head.bias": "all"}


def test_null_means_the_ancestors_own_choice(tmp_path: Path, model: torch.nn.Module) -> None:
    assert columns(plan_of(tmp_path, model, n_weight_update=None)) == columns(plan_of(tmp_path, model))
    every = plan_of(tmp_path, model, vit_layer_types=None, n_bias_update="all", n_weight_update=0)
    assert set(every.parameters) == {n for n, _ in model.named_parameters() if n.endswith("bias") and "norm" not in n
                                     and "patch" not in n}
    full = plan_of(tmp_path, model, enable_backward_config=0, **dict.fromkeys(
        ("n_bias_update", "n_weight_update", "manual_weight_idx", "vit_layer_types", "weight_update_ratio"), "absent"))
    assert set(full.parameters) == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("changes, text", [
    ({"n_bias_update": 6}, r"n_bias_update=6, .*5 layers of attention\+head"),
    ({"manual_weight_idx": [5], "n_weight_update": None, "n_bias_update": "all"},
     r"manual_weight_idx 5 is none of the model's 5 layers of attention\+head"),
    ({"n_weight_update": 4}, "n_weight_update is 4, but n_bias_update 3"),
    ({"manual_weight_idx": [1, 2]}, "manual_weight_idx takes the place of n_weight_update"),
    ({"n_bias_update": "absent"}, "n_bias_update is missing"),
    ({"enable_backward_config": "absent"}, "enable_backward_config must be 1 .* or 0"),
    ({"enable_backward_config": 0}, "n_bias_update has no effect with enable_backward_config: 0"),
    ({"weight_update_ratio": 0.01}, "is less than one: raise it, or set 0"),
    ({"weight_update_ratio": [0.5, 0.25]}, "weight_update_ratio lists 2 values for 3"),
    ({"quantize_gradient": 1}, "quantize_gradient has no meaning here with the value '1' .gradients are float32"),
    ({"n_wieght_update": 1}, "unknown key 'backward_config.n_wieght_update' .nearest known: 'n_weight_update'"),
])
def test_what_has_no_meaning_here_is_refused_by_name(tmp_path: Path, model: torch.nn.Module, changes: dict[str, Any],
                                                     text: str) -> None:
    with pytest.raises(AlgorithmError, match=text):
        plan_of(tmp_path, model, **changes)


def test_the_other_sections(tmp_path: Path) -> None:
    config = config_of(tmp_path, run_dir="here", manual_seed=3, net_config={"net_name": "vit_tiny_patch16_224",
                                                                          "model_type": "fp", "pretrained": False},
                       data_provider={"dataset": "image_folder", "root": "photos", "image_size": 64, "base_batch_size": 1},
                       run_config={"n_epochs": 4, "bs256_lr": 0.256, "optimizer_name": "sgd", "warmup_epochs": 0})
    assert (config.model.name, config.model.img_size, config.model.weights) == ("vit_tiny_patch16_224", 64, "none")
    assert (config.train.epochs, config.train.lr, config.train.momentum, config.train.seed) == (4, 0.001, 0.9, 3)
    assert (config.data.name, config.data.data_root, config.output.dir) == ("imagefolder", "photos", "here")
    for section, key, value in (("net_config", "model_type", "int8"), ("run_config", "weight_decay", 0.1),
                                ("data_provider", "base_batch_size", 64), ("run_config", "optimizer_name", "adam"),
                                ("run_config", "lr_schedule_name", "step"), ("run_config", "warmup_lr", 0.1)):
        with pytest.raises(ConfigError, match=rf"{section}\.{key} has no meaning here with the value '{value}'"):
            config_of(tmp_path, **{section: {key: value}})


def test_the_learning_rate_over_the_passes(tmp_path: Path) -> None:
    run = {"n_epochs": 5, "warmup_epochs": 1, "lr_schedule_name": "cosine", "final_lr": 1e-5}
    train = config_of(tmp_path, run_config=run).train
    assert (train.schedule, train.warmup, train.min_lr) == ("cosine", 0.2, 1e-5)
    recipe = translate({"run_config": run}, Experiment, "a file")["recipe"]["schedule"]
    assert recipe == {"sched": "cosine", "warmup_epochs": 1, "epochs": 5, "min_lr": 1e-5}
    with pytest.raises(ConfigError, match="warmup_epochs has no meaning here without n_epochs"):
        config_of(tmp_path, run_config={"warmup_epochs": 1})


def test_what_is_refused_is_refused_at_once_and_by_name(tmp_path: Path) -> None:
    """A file as the ancestor ships it: what the main job cannot do is one line with every name."""
    with pytest.raises(ConfigError) as caught:
        config_of(tmp_path, data_provider={"base_batch_size": 32, "color_aug": 0.4, "n_worker": 4, "image_size": 224},
                  run_config={"weight_decay": 0.05, "base_lr": 0.0005}, net_config={"dropout": 0.1})
    text = str(caught.value)
    assert "\n" not in text and all(name in text for name in (
        "data_provider.base_batch_size", "data_provider.color_aug", "data_provider.n_worker", "run_config.weight_decay",
        "net_config.dropout")) and "base_lr" not in text


def test_a_later_layer_changes_what_the_file_says(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("include: vit.yaml\ndata_provider: {image_size: 32}\nplan: {nearest: true}\n")
    (tmp_path / "vit.yaml").write_text(yaml.safe_dump({"backward_config": BACKWARD, "data_provider": {"image_size": 224}}))
    mine = ["--config", str(tmp_path / "mine.yaml")]
    run = load_run_config([*mine, "plan.rule.n_weight_update=1"])
    assert run.model.img_size == 32 and run.plan.rule.n_weight_update == 1 and run.plan.rule.n_bias_update == 3
    assert run.plan.nearest and not load_run_config([*mine, "plan.choose=auto"]).plan.nearest
    with pytest.raises(ConfigError, match=r"says two things of model\.img_size: 96 there and 224"):
        config_of(tmp_path, model={"img_size": 96}, data_provider={"image_size": 224})
    with pytest.raises(ConfigError, match="is a key of the ancestor, which is read from --config files alone"):
        load_run_config(["backward_config.n_bias_update=4"])


def test_nearest_is_for_a_plan_that_is_given() -> None:
    with pytest.raises(ConfigError, match=r"plan\.nearest is for a plan that is given .*leave it out"):
        load_run_config(["--nearest"])
    assert load_run_config(["--nearest", "plan.rule.n_bias_update=1"]).plan.nearest


def test_a_recipe_reads_what_the_device_cannot() -> None:
    raw = {"run_config": {"n_epochs": 3, "warmup_epochs": 1, "weight_decay": 0.05, "base_lr": 0.01,
                          "optimizer_name": "adamw"},
           "data_provider": {"base_batch_size": 32}, "backward_config": BACKWARD}
    made = translate(raw, Experiment, "a file")
    assert made["recipe"] == {"schedule": {"epochs": 3, "warmup_epochs": 1}, "batch": 32, "optim": {
        "weight_decay": 0.05, "base_lr": 0.01, "lr_base_size": 32, "opt": "adamw"}}
    assert made["plan"]["count"] == "layers" and made["plan"]["n_bias_update"] == 3


def test_a_plan_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"both backward_config and plan\.rule"):
        config_of(tmp_path, backward_config=BACKWARD, plan={"rule": {"n_bias_update": 1}})


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_schemes_have_the_layers_of_their_names(name: str) -> None:
    config = make_run_config([name])
    rule = config.plan.rule
    model = build_model(config.model.model_copy(update={"img_size": 32, "patch_size": 16}))
    plan = resolve_plan(rule, model)
    layers = {"vit_small_100kb.yaml": 8, "vit_small_2mb.yaml": 8, "vit_small_150kb.yaml": 12, "vit_small_5mb.yaml": 12,
              "vit_small_200kb.yaml": 18, "vit_small_10mb.yaml": 18, "vit_small.yaml": 15}[name]
    ratio = {8: 0.25, 12: 0.5, 18: 0.75, 15: 0.5}[layers]
    matrices = {n: c for n, c in plan.parameters.items() if n.endswith("weight")}
    assert len(matrices) == layers == sum(n.endswith("bias") for n in plan.parameters)
    for parameter, choice in matrices.items():
        assert isinstance(choice, Slice) and len(choice.index) == ratio * model.get_parameter(parameter).shape[1]
    assert config.budget.memory == (name.removesuffix(".yaml").rpartition("_")[2] if name != "vit_small.yaml" else
                                    config.budget.memory)


def test_the_nearest_plan_is_the_asked_one_with_parts_left_out(model: torch.nn.Module) -> None:
    rule = PlanConfig(count="layers", layer_norm=False, n_bias_update=3, n_weight_update=3, weight_update_ratio=0.25,
                      vit_layer_types=["attention", "head"])
    asked = resolve_plan(rule, model)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}

    def cost(plan: UpdatePlan) -> int:
        return 1000 + 4 * plan.trained_count(shapes)

    config = make_run_config([], [], {"plan.rule": rule.model_dump(), "plan.choose": "rule"}).plan
    whole = choose_plan(config, model, cost, cost(asked))
    assert whole.best is not None and whole.best.plan.parameters == asked.parameters
    found = choose_plan(config, model, cost, cost(asked) - 1)
    assert found.best is None and found.nearest is not None
    left_out = asked.parameters.keys() - found.nearest.plan.parameters.keys()
    assert left_out == {"blocks.1.attn.qkv.weight"}     # the lowest matrix
    assert all(asked.parameters[n] == c for n, c in found.nearest.plan.parameters.items())
    assert "without 1 of its 3 matrices" in found.nearest.plan.name


def test_reduced_plans_contain_one_another_and_give_up_the_head_last(model: torch.nn.Module) -> None:
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    plans = reduced_plans(resolve_plan(PlanConfig(enable_backward_config=False), model), shapes)
    assert all(a.parameters.items() < b.parameters.items() for a, b in itertools.pairwise(plans))
    assert plans[-1].parameters.keys() == shapes.keys() and plans[-1].name == "full update"
    order = [next(iter(b.parameters.keys() - a.parameters.keys())) for a, b in itertools.pairwise([UpdatePlan(), *plans])]
    assert order[:3] == ["head.bias", "head.weight", "norm.bias"] and order[-2:] == ["pos_embed", "cls_token"]
    ranks = [0 if n.startswith("head") else min(len(shapes[n]), 2) for n in order]
    assert ranks == sorted(ranks)


FIGURES = {"vit_small": None, "vit_small_2mb": 3, "vit_small_5mb": 4, "vit_small_10mb": 6, "vit_small_100kb": 1,
           "vit_small_150kb": 0, "vit_small_200kb": 1}     # matrices that the nearest plan keeps


@functools.cache
def compiler_of(img_size: int) -> tuple[torch.nn.Module, Compiler]:
    vit = build_model(make_run_config(["vit_small.yaml"]).model.model_copy(update={"img_size": img_size}))
    return vit, Compiler(vit, InputSpec((3, img_size, img_size), *input_scale_shift(vit)))


@pytest.mark.parametrize("name", FIGURES)
def test_the_figures_in_the_shipped_files_are_true(name: str) -> None:
    """What each file says of its own scheme: the least bytes it needs, and those of the nearest plan that fits."""
    config = make_run_config([f"{name}.yaml"])
    vit, compiler = compiler_of(config.model.img_size)

    def bytes_of(plan: UpdatePlan, max_recompute: float | None = None) -> int:
        return compiler.smallest_ram(dict(plan.to_dict()["parameters"]), config.train.momentum, max_recompute)
    found = choose_plan(config.plan, vit, lambda plan: bytes_of(plan, config.compile.max_recompute), config.budget.bytes,
                        least=bytes_of)
    head = " ".join(line for line in (CONFIGS / f"{name}.yaml").read_text().splitlines() if line.startswith("#"))
    assert f"{found.tried[0].bytes:,} bytes" in head
    if FIGURES[name] is None:
        assert found.best is not None
        return
    assert found.best is None and found.nearest is not None and found.nearest.bytes is not None
    assert f"({found.nearest.bytes:,} bytes)" in head and found.nearest.bytes <= config.budget.bytes
    assert sum(isinstance(c, Slice) for c in found.nearest.plan.parameters.values()) == FIGURES[name]


def test_three_names_of_the_output_folder() -> None:
    for flag in ("--output", "--run_dir", "--workdir"):
        assert load_run_config([flag, "there"]).output.dir == "there"
    assert load_run_config(["--run_dir", "a", "--workdir", "a"]).output.dir == "a"
    with pytest.raises(ConfigError, match=r"--output a and --workdir b both set output\.dir: give one of them"):
        load_run_config(["--output", "a", "--workdir", "b"])


def test_more_blocks_than_there_are_is_still_said_of_blocks(model: torch.nn.Module) -> None:
    with pytest.raises(PlanError, match="n_bias_update=3, but the model has 2 blocks"):
        resolve_plan(PlanConfig(n_bias_update=3), model)
