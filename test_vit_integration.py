"""The whole road on a small ViT: PyTorch, update plan, compiler, C, simulator; every loss and weight against float64."""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import run_vit_training
from algorithm import UpdatePlan, build_model, record_trace, resolve_plan
from algorithm.models import ModelConfig
from algorithm.models.vit import input_scale_shift
from algorithm.sparse.config import PlanConfig
from compilation.capture import InputSpec
from compilation.pieces import trained_parts
from compilation.pipeline import Compiled, Compiler
from runtime.codegen.generate import generate
from runtime.simulator import Simulator
from runtime.toolchain import available_builds, build_firmware
from runtime.validate import Validation, replay
from tests.figures import Entry, Figures

STEPS, LR = 20, 0.01
BUDGETS = {"kept": None, "smallest": "smallest"}
SMALL: dict[str, Any] = {"name": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "num_classes": 5,
                         "weights": "none", "head_init": "timm", "extra": {"embed_dim": 48, "depth": 3, "num_heads": 3}}
PLANS: dict[str, dict[str, Any]] = {
    "full update": {"enable_backward_config": False},
    "bias and LayerNorm": {"n_bias_update": "all"},
    "attention, 25 % of columns": {"n_bias_update": 0, "n_weight_update": "all", "vit_layer_types": ["attention"],
                                   "weight_update_ratio": 0.25},
    "MLP, 25 % of columns": {"n_bias_update": 0, "n_weight_update": "all", "vit_layer_types": ["mlp"],
                             "weight_update_ratio": 0.25},
    "MLP, 25 % of rows": {"n_bias_update": 0, "n_weight_update": 2, "vit_layer_types": ["mlp"],
                          "weight_update_ratio": 0.25, "weight_select_axis": "rows"},
    "Gram only": {"n_bias_update": 0, "layer_norm": False, "bias": False, "vit_layer_types": [], "n_gram_update": "all"},
    "LoRA": {"n_bias_update": 0, "vit_layer_types": [], "n_lora_update": "all"},
    "LoRA on every linear, with all else": {"enable_backward_config": False},
    "head only": {"n_bias_update": 0},
}
MODELS: dict[str, dict[str, Any]] = {
    "LoRA": {"lora": {"enabled": True, "rank": 4, "alpha": 6.0}},
    "LoRA on every linear, with all else": {"lora": {"enabled": True, "rank": 4, "alpha": 2.0, "targets": [
        "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]}},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def small_model(**changes: Any) -> torch.nn.Module:
    """Its initial weights have the same bits on every machine: PyTorch's depend on the CPU's vector unit."""
    model = build_model(ModelConfig(**{**SMALL, "gram": {"enabled": True, "rank": 8}, **changes}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("gram_b", "lora_b")) or p.min() < p.max():    # a Gram residual and LoRA that do something
                draws = np.random.default_rng(zlib.crc32(name.encode())).integers(-2 ** 15, 2 ** 15, tuple(p.shape))
                p.copy_(torch.from_numpy(draws.astype(np.float32)) / 2 ** 19)     # exact, of +-0.06
    return model


def small_compiler(model: torch.nn.Module) -> Compiler:
    scale, shift = input_scale_shift(model)
    return Compiler(model, InputSpec((3, 32, 32), scale, shift), "small")


def selections_of(plan: UpdatePlan) -> dict[str, Any]:
    return dict(plan.to_dict()["parameters"])


def compile_small(model: torch.nn.Module, plan: UpdatePlan, budget: int | str | None, momentum: float = 0.0,
                  compiler: Compiler | None = None) -> Compiled:
    compiler, selections = compiler or small_compiler(model), selections_of(plan)
    if budget == "smallest":
        budget = compiler.smallest_ram(selections, momentum)
    return compiler.compile(selections, budget, momentum)  # type: ignore[arg-type]


def trace_of(model: torch.nn.Module, plan: UpdatePlan, steps: int = STEPS, momentum: float = 0.0) -> Any:
    rng = np.random.default_rng(0)
    return record_trace(model, plan, rng.integers(0, 256, (steps, 32, 32, 3), dtype=np.uint8),
                        rng.integers(0, 5, steps), LR, momentum)


def proven(check: Validation) -> None:
    check.require()
    assert check.loss_max_rel_error < 1e-5
    assert check.resolved == len(check.tensors) > 0, "every tensor moved enough for its update to be checked"


def sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Of float32 or integer arrays by name: names, shapes and little-endian values."""
    out = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        little = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        out.update(f"{name} {little.dtype.str} {little.shape}\n".encode() + little.tobytes())
    return out.hexdigest()


def whole_parameters(compiled: Compiled, stored: Mapping[str, np.ndarray], init: Mapping[str, np.ndarray]
                     ) -> dict[str, np.ndarray]:
    """Parameter -> all of it, in PyTorch's shape: however the Program stores the part that it trains."""
    out = {name: value.copy() for name, value in init.items()}
    for part in trained_parts(compiled.program):
        whole, value = out[part.parameter].reshape(part.whole), stored[part.name]
        if part.axis is None:
            whole[:] = value.reshape(part.whole)
        else:
            at = (slice(None), list(part.index)) if part.axis == "cols" else list(part.index)
            whole[at] = value.reshape(part.shape)
    assert {part.parameter for part in trained_parts(compiled.program)} <= set(init)
    return out


def reached(model: torch.nn.Module, compiled: Compiled, trace: Any, check: Validation) -> Entry:
    """The figures of a run. Its hashes depend on nothing but the inputs and the order of sums."""
    inputs = {n: p.detach().numpy() for n, p in model.named_parameters()}
    return {"ram_bytes": compiled.memory.total, "macs": compiled.macs,
            "inputs": sha256({**inputs, "images": trace.images, "labels": trace.labels, "rates": trace.lrs}),
            "losses": sha256({"losses": check.losses.astype(np.float32)}),
            "weights": sha256(whole_parameters(compiled, check.final, trace.init))}


@pytest.mark.parametrize("memory", BUDGETS)
@pytest.mark.parametrize("name", PLANS)
def test_c_computes_what_correct_float32_code_computes(name: str, memory: str, tmp_path: Path, figures: Figures) -> None:
    model = small_model(**MODELS.get(name, {}))
    plan = resolve_plan(PlanConfig(**PLANS[name]), model)
    compiler = small_compiler(model)
    compiled = compile_small(model, plan, BUDGETS[memory], compiler=compiler)
    trace = trace_of(model, plan)
    generate(compiled.program, compiled.values, tmp_path / "c")
    with Simulator(tmp_path / "c", compiled.program) as simulator:
        measured = simulator.measure(trace.images[0], int(trace.labels[0]), LR)
        check = replay(simulator, trace)
    proven(check)
    assert measured.arena_bytes == compiled.memory.arena
    assert measured.ram_bytes == compiled.memory.total
    assert compiled.memory.arena == compiled.bound
    assert measured.flash_bytes - measured.code_bytes == compiled.memory.flash
    assert measured.macs == compiled.macs

    def law(golden: Entry) -> None:
        assert compiled.memory.total <= golden["ram_bytes"]
        same_ram = compiled
        if BUDGETS[memory] and compiled.memory.total < golden["ram_bytes"]:      # what it costs in the RAM of before
            same_ram = compiler.compile(selections_of(plan), golden["ram_bytes"])
        assert same_ram.macs <= golden["macs"]
        assert now["inputs"] == golden["inputs"], "not the compiler's doing: the model or the images are others"
        if golden["order_of_sums_kept"]:
            assert (now["losses"], now["weights"]) == (golden["losses"], golden["weights"]), (
                "other bits: where the order of sums changed on purpose, set order_of_sums_kept to false by hand")

    now = reached(model, compiled, trace, check)
    figures.compare("integration.json", f"{name}, {memory}", now, law, marks={"order_of_sums_kept": True})


def test_every_golden_plan_is_still_run(figures: Figures) -> None:
    entries = figures.read("integration.json")
    assert set(entries) == {f"{name}, {memory}" for name in PLANS for memory in BUDGETS}
    assert {type(e["order_of_sums_kept"]) for e in entries.values()} == {bool}


@pytest.mark.parametrize("budget", [None, "smallest"], ids=["kept", "smallest"])
@pytest.mark.parametrize("name", ["full update", "bias and LayerNorm", "attention, 25 % of columns", "MLP, 25 % of rows"])
def test_what_is_not_one_row_is_in_regions(name: str, budget: str | None, tmp_path: Path) -> None:
    """Of a plain ViT; all but the embedding, which no leaf is."""
    model = small_model(gram={"enabled": False})
    plan = resolve_plan(PlanConfig(**PLANS[name]), model)
    compiled = compile_small(model, plan, budget)
    tensors, tokens = compiled.program.tensors, 17
    whole = [c for c in compiled.program.calls if any(tensors[t].shape[0] == tokens for t in c.outputs.values())]
    assert any(c.op in compiled.program.regions for c in whole)
    if budget:
        assert all(c.op in compiled.program.regions or c.where.startswith("patch_embed") for c in whole)
    trace = trace_of(model, plan, steps=5)
    generate(compiled.program, compiled.values, tmp_path / "c")
    with Simulator(tmp_path / "c", compiled.program) as simulator:
        measured = simulator.measure(trace.images[0], int(trace.labels[0]), LR)
        replay(simulator, trace).require()
    assert measured.ram_bytes == compiled.memory.total and measured.macs == compiled.macs


def test_momentum_and_average_pooling(tmp_path: Path) -> None:
    model = small_model(pool="avg")
    plan = resolve_plan(PlanConfig(n_bias_update=2, n_weight_update=1, weight_update_ratio=0.5), model)
    compiled = compile_small(model, plan, "smallest", 0.9)
    trace = trace_of(model, plan, momentum=0.9)
    generate(compiled.program, compiled.values, tmp_path / "c")
    with Simulator(tmp_path / "c", compiled.program) as simulator:
        proven(replay(simulator, trace))
        assert simulator.measure(trace.images[0]).ram_bytes == compiled.memory.total


@pytest.mark.parametrize("option", [{"no_embed_class": True}, {"reg_tokens": 2}], ids=["deit3", "registers"])
def test_other_prefix_tokens_go_through_the_long_tail(option: dict[str, Any], tmp_path: Path) -> None:
    model = small_model(extra={**SMALL["extra"], **option}, gram={"enabled": False})
    plan = resolve_plan(PlanConfig(n_bias_update="all"), model)
    compiled = compile_small(model, plan, "smallest")
    assert any(c.op.startswith("tir:") for c in compiled.program.calls)
    trace = trace_of(model, plan, steps=5)
    generate(compiled.program, compiled.values, tmp_path / "c")
    with Simulator(tmp_path / "c", compiled.program) as simulator:
        proven(replay(simulator, trace))
        assert simulator.measure(trace.images[0]).ram_bytes == compiled.memory.total


def test_every_build_gives_the_same_bits_and_the_device_needs_nothing_else(tmp_path: Path) -> None:
    """Law 4: -O0, -O3 for the baseline CPU, -O3 for this CPU, gcc and clang where present; Cortex-M7 links alone."""
    model = small_model()
    plan = resolve_plan(PlanConfig(enable_backward_config=False), model)
    compiled = compile_small(model, plan, "smallest")
    trace = trace_of(model, plan, steps=3)
    generate(compiled.program, compiled.values, tmp_path / "c")
    bits = {}
    for name, build in available_builds().items():
        with Simulator(tmp_path / "c", compiled.program, build) as simulator:
            losses = [simulator.train_step(i, int(n), LR) for i, n in zip(trace.images, trace.labels, strict=True)]
            bits[name] = np.array(losses).tobytes() + b"".join(v.tobytes() for v in simulator.trained().values())
    assert len(bits) >= 3
    assert len(set(bits.values())) == 1, sorted(bits)
    assert not build_firmware(tmp_path / "c").undefined


def test_the_command_writes_a_whole_run_folder(tmp_path: Path) -> None:
    arguments = ["--memory_budget", "300kb", "--output", str(tmp_path), "--name", "small", "--data", "digits",
                 "model.name=vit_tiny_patch16_224", "model.img_size=32", "model.patch_size=8", "model.weights=none",
                 "model.head_init=timm", "model.gram.rank=8", "model.extra={embed_dim: 48, depth: 3, num_heads: 3}",
                 "data.images_per_class=2", "data.test_images=20", "train.epochs=1", "train.trace_steps=3"]
    assert run_vit_training.main(arguments) == 0
    folder = tmp_path / "latest"
    names = {p.name for p in folder.iterdir()}
    assert {"config.yaml", "plan.yaml", "checkpoint.safetensors", "trace.safetensors", "program.txt", "program.json", "c",
            "report.html", "summary.json"} <= names
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["ram_planned_bytes"] == summary["ram_measured_bytes"] <= summary["budget_bytes"] == 300_000
    assert summary["arena_bytes"] == summary["arena_lower_bound_bytes"]
    assert summary["trace_steps"] == 3
    assert "http" not in (folder / "report.html").read_text().replace("http://www.w3.org", "")


def test_an_impossible_budget_ends_with_the_smallest_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--memory_budget", "10kb", "--output", str(tmp_path), "--data", "digits", "model.weights=none",
                 "model.name=vit_tiny_patch16_224", "model.img_size=32", "model.patch_size=8",
                 "model.extra={embed_dim: 48, depth: 3, num_heads: 3}", "data.images_per_class=1", "data.test_images=10"]
    assert run_vit_training.main(arguments) == 2
    message = capsys.readouterr().err
    assert "needs at least" in message and "bytes live" in message
    assert not (tmp_path / "latest").exists()


def bad_inputs(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """What goes wrong -> (arguments, what the one line of the error says)."""
    empty, corrupt = tmp_path / "empty", tmp_path / "corrupt"
    for folder in (root / split / kind for root in (empty, corrupt) for split in ("train", "val") for kind in "ab"):
        folder.mkdir(parents=True)
        if corrupt in folder.parents:
            (folder / "broken.png").write_bytes(b"no image")
    taken = tmp_path / "taken"
    taken.write_text("a file where the output folder should be")
    weights = tmp_path / "nan.safetensors"
    state = {n: v.clone() for n, v in small_model(gram={"enabled": False}).state_dict().items()}
    state["blocks.0.norm1.bias"][0] = float("nan")
    save_file(state, weights)
    return {
        "unknown key": (["train.learning_rate=1"], "learning_rate"),
        "empty folder": (["--data_root", str(empty)], "no image"),
        "corrupt image": (["--data_root", str(corrupt)], "broken.png"),
        "label out of range": (["--num_classes", "3"], "label"),
        "NaN in the weights": (["--weights", str(weights), "model.gram.enabled=false"], "blocks.0.norm1.bias"),
        "unwritable output": (["--output", str(taken)], "taken"),
    }


@pytest.mark.parametrize("name", ["unknown key", "empty folder", "corrupt image", "label out of range", "NaN in the weights",
                                  "unwritable output"])
def test_bad_input_is_one_line_and_leaves_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, text = bad_inputs(tmp_path)[name]
    small = ["--data", "digits", "--name", "bad", "model.name=vit_tiny_patch16_224", "model.img_size=32",
             "model.patch_size=8", "model.weights=none", "model.num_classes=10",
             "model.extra={embed_dim: 48, depth: 3, num_heads: 3}",
             "data.images_per_class=1", "data.test_images=10"]
    if "--data_root" in arguments:
        small = small[2:]
    given = {a.partition("=")[0] for a in arguments} | {"model.weights" if "--weights" in arguments else "",
                                                         "model.num_classes" if "--num_classes" in arguments else ""}
    runs = tmp_path / "runs"
    out = [] if "--output" in arguments else ["--output", str(runs)]
    assert run_vit_training.main([*(a for a in small if a.partition("=")[0] not in given), *out, *arguments]) == 1
    message = capsys.readouterr().err
    error = [line for line in message.splitlines() if "error:" in line]
    assert len(error) == 1 and text in error[0], message
    assert not runs.exists() or list(runs.iterdir()) == []


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
