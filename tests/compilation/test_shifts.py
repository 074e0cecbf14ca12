"""Parameters whose gradient is exactly zero are constants: what only shifts all the keys of an attention."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compilation.capture import InputSpec
from compilation.ops import REGISTRY
from compilation.passes.shifts import unfelt
from compilation.pieces import trained_parts
from compilation.pipeline import Compiled, Compiler
from runtime.errors import ValidationError
from runtime.report.report import plan_rows
from runtime.validate import require_fit, require_still
from tests.compilation.in_c import trains_like_torch
from tests.compilation.models import image_input, torch_step
from tests.compilation.test_leaves import ROWS, WIDTH, Attend, Classifier, inputs, vit

PACKED = "blocks.1.attn.qkv.bias"


def found(model: nn.Module, spec: InputSpec) -> set[str]:
    return set(unfelt(Compiler(model, spec).forward))


def gradients(model: nn.Module, spec: InputSpec) -> dict[str, float]:
    """Largest element of each parameter's float64 gradient."""
    x = image_input(spec)[1] if spec.is_image else torch.from_numpy(np.random.default_rng(0).normal(size=(1, *spec.shape)))
    nn.functional.cross_entropy(model.double()(x), torch.tensor([1])).backward()
    return {n: float(p.grad.abs().max()) for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("norm", "expected"), [(False, {"k.bias"}), (True, set())])
def test_only_shifts_are_found(norm: bool, expected: set[str]) -> None:
    """Of keys that are normalised with the norm of the queries, too, nothing is free: its shift reaches the queries."""
    model, spec = Classifier(lambda: Attend(norm)), InputSpec((ROWS, WIDTH))
    known = found(model, spec)
    assert known == {f"layers.{i}.{n}" for i in (0, 2) for n in expected}
    steep = gradients(model, spec)
    assert all(steep[n] < 1e-12 for n in known) and all(g > 1e-9 for n, g in steep.items() if n not in known)


@pytest.mark.parametrize(("model", "expected"), [
    (vit(), "qkv.bias[24:48]"), (vit(("attn.qkv",)), "qkv.bias[24:48]"), (vit(qk_norm=True), "k_norm.bias")])
def test_in_a_vision_transformer(model: nn.Module, expected: str) -> None:
    """Of a packed layer a piece; beside a low-rank addition; of a norm of the keys alone."""
    assert found(model, inputs(model)[0]) == {f"blocks.{i}.attn.{expected}" for i in range(2)}


@pytest.fixture(scope="module")
def packed() -> tuple[nn.Module, Compiled]:
    model = vit()
    plan = {n: "all" for n, _ in model.named_parameters() if n.endswith("bias")}
    return model, Compiler(model, inputs(model)[0]).compile(dict(plan))


def test_they_take_no_memory_and_the_rest_is_one_parameter(packed: tuple[nn.Module, Compiled]) -> None:
    model, made = packed
    part = next(p for p in trained_parts(made.program) if p.parameter == PACKED)
    assert part.shape == (1, 48) and part.axis == "cols" and part.index == (*range(24), *range(48, 72))
    biases = sum(p.numel() for n, p in model.named_parameters() if n.endswith("bias"))
    assert made.memory.trained == 4 * (biases - 2 * 24) and made.trained_parameters == biases - 2 * 24


def test_a_trace_that_moves_a_constant_is_refused(packed: tuple[nn.Module, Compiled]) -> None:
    model, made = packed
    spec = inputs(model)[0]
    plan = {n: "all" for n, _ in model.named_parameters() if n.endswith("bias")}
    start = {n: p.detach().double().numpy().copy() for n, p in model.named_parameters() if n in plan}
    final = {n: v.copy() for n, v in torch_step(model, image_input(spec)[1], 1, dict(plan), 0.1, 3)[1].items()}
    trace: Any = SimpleNamespace(init=start, final64=final, losses64=np.ones(1), lrs=np.ones(1), metadata={})
    require_fit(made.program, [t for p in trained_parts(made.program) for t in p.tensors], trace)
    require_still(made.program, trace)
    final[PACKED][30] += 1e-6
    with pytest.raises(ValidationError, match=f"moves {PACKED}"):
        require_still(made.program, trace)
    report: Any = SimpleNamespace(program=made.program, plan={"parameters": plan}, validation=SimpleNamespace(tensors=[]))
    row, = [r for r in plan_rows(report) if r["name"] == PACKED]
    assert row["what"].startswith("48 of 72: the others' gradient is zero") and row["count"] == "48"


def test_a_parameter_that_is_a_constant_altogether() -> None:
    """Trained in C beside PyTorch; the report says what became of it."""
    model = Classifier(Attend)
    plan = {n: "all" for n, _ in model.named_parameters()}
    kept = {n: s for n, s in plan.items() if not n.endswith("k.bias")}
    made = trains_like_torch(model, InputSpec((ROWS, WIDTH)), dict(kept))
    whole = Compiler(model.float(), InputSpec((ROWS, WIDTH))).compile(dict(plan))
    assert whole.program.text() == made.program.text()
    report: Any = SimpleNamespace(program=whole.program, plan=plan, validation=SimpleNamespace(tensors=[]))
    constant = [r for r in plan_rows(report) if r["count"] == "0"]
    assert {r["name"] for r in constant} == {f"layers.{i}.k.bias" for i in (0, 2)}
    assert all("gradient is zero" in r["what"] for r in constant)


def test_a_plan_of_constants_alone_trains_nothing() -> None:
    made = Compiler(Classifier(Attend), InputSpec((ROWS, WIDTH))).compile({"layers.0.k.bias": "all"})
    assert made.memory.trained == 0 and not trained_parts(made.program)


def test_the_folder_goes_round(packed: tuple[nn.Module, Compiled], tmp_path: Path) -> None:
    from runtime.codegen import generate
    from runtime.simulator import Simulator

    _, made = packed
    generate(made.program, made.values, tmp_path / "c")
    rng = np.random.default_rng(0)
    whole = {p.parameter: rng.normal(size=p.whole).astype(np.float32) for p in trained_parts(made.program)}
    with Simulator(tmp_path / "c", made.program) as simulator:
        simulator.load_trained({n: v.reshape(-1) if v.shape[0] == 1 else v for n, v in whole.items()})
        stored = simulator.trained()
    np.testing.assert_array_equal(stored[f"{PACKED}.trained"].ravel(), np.delete(whole[PACKED], range(24, 48)))


@pytest.mark.parametrize("name", [n for n, op in REGISTRY.items() if op.shifts or op.shift_free])
def test_operations_do_to_shifts_what_they_declare(name: str) -> None:
    op, rng = REGISTRY[name], np.random.default_rng(0)
    for sample in op.samples(rng):
        attrs = {**op.defaults(), **sample.attrs}
        before = op.reference(sample.inputs, attrs)["y"]
        for slot in {*op.shifts, *op.shift_free} & sample.inputs.keys():
            value = sample.inputs[slot]
            moved = {**sample.inputs, slot: value + rng.normal(size=value.shape[-1:])}
            change = op.reference(moved, attrs)["y"] - before
            limit = 0.0 if slot in op.shift_free else change[..., :1, :]
            assert np.abs(change - limit).max() < 1e-10, (slot, sample.note)
