"""A Program that calls a region twice, as C: one function, and the loss of the interpreter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compilation.interpret import Interpreter
from compilation.memory.liveness import padded
from compilation.ops import REGISTRY
from compilation.passes.rewrite import site
from compilation.program import Call, Program, Role, Tensor
from compilation.regions.region import Region
from compilation.target import CORTEX_M
from compilation.types import BYTES, LABEL, Type
from runtime.codegen import generate
from runtime.simulator import Simulator

N, C, H = 21, 8, 12
SLOTS = {"gamma": (C,), "beta": (C,), "w1": (H, C), "b1": (H,), "w2": (C, H), "b2": (C,)}


def mlp() -> Region:
    """y = x + w2 gelu(w1 layer_norm(x) + b1) + b2."""
    p = Program("mlp")
    p.add(Tensor("x", Type((N, C)), Role.INPUT))
    for slot, shape in SLOTS.items():
        p.add(Tensor(slot, Type(shape), Role.CONSTANT))
    for op, inputs, result, columns in (
            ("layer_norm", {"x": "x", "gamma": "gamma", "beta": "beta"}, "a", C),
            ("linear", {"x": "a", "w": "w1", "b": "b1"}, "u", H), ("gelu", {"x": "u"}, "g", H),
            ("linear", {"x": "g", "w": "w2", "b": "b2"}, "v", C), ("add", {"a": "x", "b": "v"}, "y", C)):
        p.add(Tensor(result, Type((N, columns)), Role.ACTIVATION))
        p.calls.append(Call(op, inputs, {"y": result}, REGISTRY[op].defaults()))
    return Region(p, ("y",))


def two_blocks(schedule: str) -> Program:
    """Image, two blocks of other weights, the first token's row as logits."""
    region, at = mlp(), 0
    p = Program("two blocks", image="image", label="label", logits="logits", loss="loss", predict_calls=3)
    p.regions[region.name] = region

    def placed(name: str, kind: Type, role: Role) -> str:
        nonlocal at
        p.add(Tensor(name, kind, role, offset=at))
        at += padded(kind.bytes)
        return name

    x = placed("image", Type((N, C)), Role.INPUT)
    placed("label", Type((1,), LABEL), Role.INPUT)
    for b in "01":
        inputs = {"x": x}
        for slot, shape in SLOTS.items():
            inputs[slot] = p.add(Tensor(f"{b}.{slot}", Type(shape), Role.CONSTANT, f"{b}.{slot}")).name
        x = placed(f"y{b}", Type((N, C)), Role.ACTIVATION)
        call = Call(region.name, inputs, {"y": x}, {"schedule": schedule}, where=f"blocks.{b}")
        if size := region.scratch(site(p, call)):
            call = replace(call, scratch=placed(f"scratch.{b}", Type((size,), BYTES), Role.SCRATCH))
        p.calls.append(call)
    p.add(Tensor("logits", Type((1, C)), Role.OUTPUT))
    p.add(Tensor("loss", Type((1,)), Role.OUTPUT))
    p.calls += [Call("take_row", {"x": x}, {"y": "logits"}, {"row": 0}),
                Call("cross_entropy", {"logits": "logits", "label": "label"}, {"loss": "loss"})]
    return p


@pytest.mark.parametrize("schedule", [0, 0.5, 1], ids=["fastest", "between", "smallest"])
def test_two_calls_of_a_region_are_one_function(schedule: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    program = two_blocks("")
    region, = program.regions.values()
    assert isinstance(region, Region)
    found = [str(s.attrs["schedule"]) for s in region.settings(site(program, program.calls[0]), CORTEX_M)]
    program = two_blocks(found[int(schedule * (len(found) - 1))])
    values = {n: rng.normal(1.0, 0.5, t.shape).astype(np.float32) for n, t in program.tensors.items()
              if t.role is Role.CONSTANT}
    image = rng.normal(size=(N, C)).astype(np.float32)
    generate(program, values, tmp_path / "c")
    text = (tmp_path / "c" / "vit_train.c").read_text()
    assert text.count("static void region_") == 1 and text.count("region_0(&call_") == 2
    with Simulator(tmp_path / "c", program) as simulator:
        loss = simulator.train_step(image, 3, 0.0)
    expected = Interpreter(program, values).step(image, 3, 0.0)
    assert loss == pytest.approx(expected, rel=1e-5)
