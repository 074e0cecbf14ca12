"""The Program is plain data: its parts cannot be changed, copies share them, and every stage of it can be written."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import nn

from compilation.capture import InputSpec
from compilation.memory.validate import check_program_memory
from compilation.passes.training import Selection
from compilation.pipeline import Compiler
from compilation.program import Call, Program, Role, Tensor, Weight
from compilation.program_file import from_json
from compilation.types import Type
from tests.compilation.models import IMAGE
from tests.compilation.test_gradients import vit


def test_parts_cannot_be_changed() -> None:
    shape = [2, 3]
    tensor = Tensor("t", Type(shape), Role.INPUT)  # type: ignore[arg-type]
    weight = Weight("w", (2, 3), "w.frozen", "w.trained", "cols", [0, 2])  # type: ignore[arg-type]
    call = Call("linear", {"x": "t"}, {"y": "u"}, {"pads": [[0, 1], [2, 3]]}, {"w": "w"})
    shape[0] = 9
    assert tensor.shape == (2, 3) and weight.rest == (1,) and call.attrs["pads"] == ((0, 1), (2, 3))
    for part, name in ((tensor, "offset"), (weight, "index"), (call, "inputs")):
        with pytest.raises(FrozenInstanceError):
            setattr(part, name, None)
    for mapping in (call.inputs, call.outputs, call.attrs, call.updates):
        changes = [lambda m: m.update(x=1), lambda m: m.clear(), lambda m: m.pop("x"), lambda m: m.setdefault("z", 1),
                   lambda m: m.__setitem__("x", 1), lambda m: m.__delitem__("x"), lambda m: m.__ior__({"x": 1})]
        for change in changes:
            with pytest.raises(TypeError, match="cannot be changed"):
                change(mapping)
    assert {tensor, weight, call} == {tensor, weight, call}            # and so they can be members of sets
    assert pickle.loads(pickle.dumps(call)) == call


def test_two_schedules_of_one_planner_are_independent() -> None:
    """Finishing one leaves the other, and the planner, as they were."""
    compiler = Compiler(vit(depth=3), IMAGE)
    plan: dict[str, Selection] = {n: "all" for n in compiler.shapes if "bias" in n or "norm" in n}
    planner = compiler.planner(plan)
    least = planner.smallest()
    more = planner.fastest(2 * least.ram)
    assert more is not None
    one = compiler.finish(least, least, least.ram)
    before = one.program.to_json()
    offsets = {n: t.offset for n, t in one.program.tensors.items()}
    two = compiler.finish(more, more, 2 * least.ram)
    three = compiler.finish(planner.unconstrained(), more, None)
    assert one.program.to_json() == before
    assert {n: t.offset for n, t in one.program.tensors.items()} == offsets
    for compiled in (one, two, three):
        check_program_memory(compiled.program, compiled.memory.arena)
    assert compiler.finish(least, least, least.ram).program == one.program
    assert all(t.offset is None for t in (*least.program.tensors.values(), *compiler.forward.tensors.values()))


class Tail(nn.Module):
    """A network of operations without kernels of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.sigmoid(self.conv(x)).flatten(1))


def test_every_stage_is_copied_printed_and_written() -> None:
    """Also what the long tail needs until it is lowered."""
    compiler = Compiler(Tail().eval(), InputSpec((3, 8, 8)))
    text = compiler.forward.to_json()
    again = from_json(text)
    assert again == compiler.forward and again.text() == compiler.forward.text()
    assert max(map(len, again.text().splitlines())) < 200
    compiler.forward = pickle.loads(pickle.dumps(again.copy()))
    plan: dict[str, Selection] = {"conv.weight": "all", "head.weight": "all"}
    compiled = compiler.compile(plan)
    assert compiler.forward.to_json() == text
    assert isinstance(compiled.program.copy(), Program) and from_json(compiled.program.to_json()) == compiled.program
