"""Passes over the Program: regions, narrowing, checkpoints, storage, verification, budgets, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from compilation.capture import InputSpec, capture
from compilation.cost import total_macs
from compilation.errors import BudgetError, CaptureError, UnsupportedOperationError, VerificationError
from compilation.memory.liveness import lifetimes, live_bytes, lower_bound
from compilation.memory.validate import check_program_memory
from compilation.passes.checkpoints import Order
from compilation.passes.form import form_regions
from compilation.passes.narrow import narrow_rows
from compilation.passes.training import Selection
from compilation.pipeline import Compiler
from compilation.program import Call, Program, Role, Tensor
from compilation.program_file import from_json
from compilation.scheduling import STRIDES
from compilation.types import Type
from compilation.verify import verify
from tests.compilation.models import IMAGE
from tests.compilation.test_gradients import vit

DEPTH = 4
MLP = "layer_norm linear gelu linear add"
ATTENTION = "layer_norm linear linear linear attention linear add"


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(vit(depth=DEPTH), IMAGE)


def biases(compiler: Compiler) -> dict[str, Selection]:
    return {n: "all" for n in compiler.shapes if "bias" in n or "norm" in n or "head" in n}


def test_the_import_is_fine_grained_and_complete(compiler: Compiler) -> None:
    ops = [c.op for c in compiler.forward.calls]
    assert ops[0] == "patch_embed" and ops[-1] == "linear"
    assert ops.count("attention") == DEPTH and ops.count("linear") == 6 * DEPTH + 1
    assert not [o for o in ops if o.startswith("relax:")]
    assert {"prefix", "pos", "b"} <= compiler.forward.calls[0].inputs.keys()


def test_chains_become_regions_by_their_readers(compiler: Compiler) -> None:
    program = compiler.forward.copy()
    assert form_regions(program) == 2 * DEPTH
    assert [program.chain(c) for c in program.calls if c.op in program.regions] == [ATTENTION, MLP] * DEPTH
    verify(program, "form")
    for gelu in [c for c in compiler.forward.calls if c.op == "gelu"]:
        spied = compiler.forward.copy()
        spied.logits = gelu.outputs["y"]            # somebody else reads the hidden layer: it has to exist
        form_regions(spied)
        assert any(spied.logits in c.outputs.values() for c in spied.calls) and spied.logits in spied.tensors


def test_only_the_class_token_is_computed_behind_the_last_attention(compiler: Compiler) -> None:
    program = compiler.forward.copy()
    narrow_rows(program)
    form_regions(program)
    verify(program, "narrow")
    regions = [c for c in program.calls if "attention" in program.chain(c)]
    queries = [(d := program.regions[c.op].definition).tensors[next(a for a in d.calls if a.op == "attention").inputs["q"]]
               for c in regions]
    assert [q.shape[0] for q in queries] == [17] * (DEPTH - 1) + [1]
    behind = program.calls[program.calls.index(regions[-1]):]
    assert all(program.tensors[t].shape[0] == 1 for c in behind for t in c.outputs.values())


def test_more_checkpoints_mean_less_work_and_more_memory(compiler: Compiler) -> None:
    planner = compiler.planner(biases(compiler))
    steps = [planner.at(0, slots, 0, None) for slots in range(2 * DEPTH)]
    macs = [s.macs for s in steps]
    assert macs == sorted(macs, reverse=True) and macs[0] > macs[-1]
    assert all(total_macs(s.program) == s.macs for s in steps)
    assert steps[0].peak < steps[-1].peak


def test_every_budget_is_kept_and_spent_on_speed(compiler: Compiler) -> None:
    plan = biases(compiler)
    least = compiler.smallest_ram(plan)
    macs = []
    for budget in range(least, 4 * least, least // 3):
        compiled = compiler.compile(plan, budget)
        assert compiled.memory.total <= budget
        assert compiled.memory.arena == lower_bound(compiled.program) == max(live_bytes(compiled.program))
        check_program_memory(compiled.program, budget)
        macs.append(compiled.macs)
    assert macs[-1] <= macs[0]
    assert compiler.compile(plan).macs == min(compiler.compile(plan).macs_without_recompute, *macs)


def test_a_budget_below_the_smallest_is_refused_with_figures(compiler: Compiler) -> None:
    plan = biases(compiler)
    least = compiler.smallest_ram(plan)
    with pytest.raises(BudgetError, match=r"region\.\w+ \(.*attention_grad .*\) of blocks\.") as caught:
        compiler.compile(plan, least - 4)
    assert caught.value.smallest == least
    assert compiler.compile(plan, least).memory.total <= least


def test_less_recomputation_needs_no_less_memory(compiler: Compiler) -> None:
    planner = compiler.planner(biases(compiler))
    free, bounded = planner.smallest(), planner.smallest(1.5)
    assert free.ram <= bounded.ram
    limit = 1.5 * planner.unconstrained().time
    assert bounded.time <= limit
    structure = planner.structure(0)
    for kept, source, stride in product(structure.chain.kept_options(), structure.sources(), STRIDES):
        for slots in range(structure.max_slots(kept) + 1):
            other = planner._least_arena(Order(slots, source, kept, stride), int(limit), None)
            assert other is None or other.ram >= bounded.ram


def test_programs_survive_json(compiler: Compiler) -> None:
    program = compiler.compile(biases(compiler), 60_000).program
    again = from_json(program.to_json())
    assert replace(again, regions={}) == replace(program, regions={}) and again.to_json() == program.to_json()
    assert again.text() == program.text()
    assert again.arena_bytes == program.arena_bytes
    assert lifetimes(again) == lifetimes(program)


def spoil(program: Program, kind: str) -> None:
    calls = program.calls
    if kind == "before any call makes it":
        calls.insert(0, calls.pop(next(i for i, c in enumerate(calls) if program.chain(c) == MLP)))
    elif kind == "a second time":
        calls.append(calls[1])
    elif kind == "unknown tensor":
        calls[2] = replace(calls[2], inputs={**calls[2].inputs, "x": "nowhere"})
    elif kind == "took over":
        call = next(c for c in calls if program.chain(c) == MLP)
        program.put(call.outputs["y"], alias=call.inputs["x"])
        again = Call("layer_norm", {"x": call.inputs["x"]}, {"y": "late"}, {"eps": 1e-6})
        program.add(Tensor("late", Type(program.tensors[call.outputs["y"]].shape), Role.ACTIVATION))
        calls.insert(calls.index(call) + 1, again)


@pytest.mark.parametrize("kind", ["before any call makes it", "a second time", "unknown tensor", "took over"])
def test_the_verifier_sees_what_is_wrong(compiler: Compiler, kind: str) -> None:
    program = compiler.forward.copy()
    form_regions(program)
    verify(program, "form")
    spoil(program, kind)
    with pytest.raises(VerificationError, match=kind):
        verify(program, "spoiling")


def test_a_weight_is_not_read_after_its_update(compiler: Compiler) -> None:
    program = compiler.compile(biases(compiler), compiler.smallest_ram(biases(compiler)) * 2).program
    calls = program.calls
    update = next(i for i, c in enumerate(calls) if c.op == "linear_grad" and c.updates)
    reader = next(c for c in calls if c.op == "linear" and c.inputs.get("b") == calls[update].updates["b"])
    calls.remove(reader)
    with pytest.raises(VerificationError, match=r"updated it|makes it"):
        calls.insert(update, reader)
        verify(program, "spoiling")


class Sorts(nn.Module):
    """A layer whose operation nobody imports."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), Fourier())
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x).mean(1))


class Fourier(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.fft(x).real


def test_what_cannot_be_compiled_is_refused_with_its_module_path() -> None:
    with pytest.raises(UnsupportedOperationError, match=r"fft.*inner\.1"):
        Compiler(Sorts().eval(), InputSpec((4, 6)))


def test_unsound_models_are_refused() -> None:
    model = vit()
    with pytest.raises(CaptureError, match="eval"):
        capture(model.train(), IMAGE)
    model.eval()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if n == "blocks.0.norm1.bias")[3] = np.nan
    with pytest.raises(CaptureError, match=r"blocks\.0\.norm1\.bias"):
        capture(model, IMAGE)


def test_the_program_text_is_stable(compiler: Compiler, golden: Callable[[str, str], None]) -> None:
    """The whole planned step as text: refresh with pytest --update-golden and read the difference."""
    plan = {n: s for n, s in biases(compiler).items() if n.startswith(("blocks.3", "blocks.2", "head", "norm"))}
    golden("program.txt", compiler.compile(plan, compiler.smallest_ram(plan)).program.text())
