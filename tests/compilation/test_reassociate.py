"""Single queries that are projected, instead of their keys and values: where, what it computes, how it trains."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
import timm
import torch
from torch import nn

from compilation.capture import InputSpec, capture
from compilation.cost import total_macs
from compilation.errors import PlanError
from compilation.interpret import Interpreter
from compilation.passes.form import form_regions
from compilation.passes.narrow import narrow_rows
from compilation.passes.reassociate import project_queries
from compilation.passes.training import Selection
from compilation.pieces import trained_parts
from compilation.pipeline import Compiler
from compilation.program import Program
from compilation.regions.region import Region
from compilation.tvm_adapter import import_model, importable
from compilation.tvm_adapter.vjp import gradient_of
from tests.compilation.in_c import trains_like_torch
from tests.compilation.models import IMAGE, image_input, torch_step
from tests.compilation.test_leaves import randomised
from tests.compilation.test_leaves import vit as leaf_vit
from tests.compilation.test_regions import Vit, cases, holds

ATTENTION = "blocks.1.attn"


def forward(model: nn.Module, spec: InputSpec) -> tuple[Program, Program]:
    """One row where one is read; and with its query projected."""
    program = import_model(capture(model, spec, importable()), "vit")
    narrow_rows(program)
    return program, project_queries(program)


def counts(program: Program) -> Counter[str]:
    return Counter(c.op for c in program.calls)


def vit(**options: object) -> nn.Module:
    torch.manual_seed(1)
    return randomised(timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2,
                                        num_heads=3, num_classes=5, **options), 0.2)


def test_the_last_block_s_query_is_projected() -> None:
    plain, made = forward(vit(), IMAGE)
    before, after = counts(plain), counts(made)
    assert after - before == Counter({"head_linear": 1, "head_linear_t": 1}) and before - after == Counter({"linear": 2})
    assert total_macs(plain) - total_macs(made) == 2 * 17 * 24 * 24 + 2 * 17 * 24 - 2 * 24 * 24 - 2 * 17 * 24 * 3
    call, = [c for c in made.calls if c.op == "attention" and made.tensors[c.inputs["q"]].shape == (3, 24)]
    assert call.attrs["heads"] == 1 and call.attrs["scale"] == pytest.approx(8 ** -0.5)
    assert call.inputs["k"] == call.inputs["v"]


@pytest.mark.parametrize("model", [
    vit(global_pool="avg"), vit(qk_norm=True), leaf_vit(("attn.qkv",)), Vit(2, 16, 16, 12, True)],
    ids=["all rows are read", "keys are normed", "keys are a sum", "more work"])
def test_elsewhere_nothing_is_done(model: nn.Module) -> None:
    plain, made = forward(model, InputSpec(model.shape) if isinstance(model, Vit) else IMAGE)
    assert made is plain


@cache
def region() -> Region:
    """The attention of one query."""
    program = forward(Vit(9, 8, 2, 12, True), InputSpec((9, 8)))[1]
    form_regions(program)
    found, = [r for r in program.regions.values() if any(c.op == "head_linear" for c in r.definition.calls)]
    return found


def test_forward_schedules_compute_the_definition() -> None:
    holds(region(), ["y"], [], {})


@pytest.mark.parametrize("case", range(7))
def test_gradient_schedules_compute_the_definition(case: int) -> None:
    gradient = gradient_of(region())
    assert gradient is not None
    wants, updates, axis = cases(gradient)[case]
    parts: dict[str, tuple[str, list[int]]] = {}
    for name in (r.removeprefix("d_") for r in updates if axis):
        size = gradient.definition.tensors[name].shape[int(axis == "cols")]
        parts[name] = axis, sorted(random.Random(name).sample(range(size), max(1, size // 4)))
    holds(gradient, wants, updates, parts)


PLANS: dict[str, dict[str, Selection]] = {
    "all of the block": {f"{ATTENTION}.{n}": "all" for n in ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias")},
    "columns": {f"{ATTENTION}.qkv.weight": {"cols": [0, 5, 6, 23]}, f"{ATTENTION}.qkv.bias": "all"},
    "rows of all three": {f"{ATTENTION}.qkv.weight": {"rows": [1, 23, 24, 30, 47, 50, 71]}, "blocks.1.norm1.bias": "all"},
    "what is below": {"blocks.0.norm1.weight": "all", "blocks.0.mlp.fc1.weight": "all"}}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("tight", [False, True])
def test_steps_train_like_torch(name: str, tight: bool) -> None:
    """In float64 on the references, and in C, at the smallest budget, too."""
    model = vit()
    compiler = Compiler(model, IMAGE)
    budget = compiler.smallest_ram(PLANS[name]) if tight else None
    made = compiler.compile(PLANS[name], budget)
    calls = [*made.program.calls, *(c for r in made.program.regions.values() for c in r.definition.calls)]
    assert any(c.op == "head_linear" for c in calls)
    image, x = image_input(IMAGE)
    start = {n: p.detach().double().numpy().copy() for n, p in model.named_parameters()}
    machine = Interpreter(made.program, made.values)
    losses = [machine.step(image, 1, 0.1) for _ in range(2)]
    want_losses, want = torch_step(model, x, 1, PLANS[name], 0.1, 2)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-10)
    for part in trained_parts(made.program):
        final = np.concatenate([machine.memory[t.name].ravel() for t in part.tensors])
        expected, before = (part.of(values[part.parameter]) for values in (want, start))
        np.testing.assert_allclose(final, expected, rtol=0, atol=1e-9 * np.abs(expected - before).max())
    trains_like_torch(vit(), IMAGE, PLANS[name], budget)


@pytest.mark.parametrize("tight", [False, True])
def test_more_heads_than_queries_of_a_call(tight: bool) -> None:
    plan: dict[str, Selection] = dict.fromkeys(("blocks.0.norm1.weight", "blocks.1.attn.qkv.bias", "head.bias"), "all")
    model = Vit(20, 34, 17, 12, True)
    spec = InputSpec(model.shape)
    budget = Compiler(model, spec).smallest_ram(plan) if tight else None
    made = trains_like_torch(model, spec, plan, budget)
    assert made.bound == made.memory.arena


def test_a_layer_of_keys_whose_bias_nobody_reads() -> None:
    """Named in a plan it is a constant; what the model does not have is refused."""
    compiler = Compiler(Separate(), InputSpec((7, 12)))
    made = compiler.compile({"k.bias": "all", "v.bias": "all"})
    assert not any(n.startswith("k.bias") for n in made.program.tensors) and made.trained_parameters == 12
    with pytest.raises(PlanError, match="does not have"):
        compiler.compile({"kk.bias": "all"})
    trains_like_torch(Separate(), InputSpec((7, 12)), {n: "all" for n, _ in Separate().named_parameters() if n != "k.bias"})


class Separate(nn.Module):
    """The first row attends to all of them, queries, keys and values of layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))
        randomised(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = self.norm(x)
        q, k, v = (f(u).view(1, 7, 3, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        o = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 7, 12)
        return self.head((x + o)[:, 0])


def test_where_it_costs_memory_the_smallest_step_is_without() -> None:
    """The planner weighs both where a projected query binds; then the budget decides."""
    model = Vit(2, 16, 4, 12, True)
    plan: dict[str, Selection] = {"blocks.1.mlp.0.weight": "all"}
    planner = Compiler(model, InputSpec(model.shape)).planner(plan)
    assert planner.plain is not None and planner.plain.plain is None
    least = planner.smallest()
    assert least.ram == planner.plain.smallest().ram < planner._smallest(None).ram
    fits = planner.fastest(least.ram)
    assert fits is not None and fits.ram == least.ram and planner.fastest(least.ram - 1) is None
