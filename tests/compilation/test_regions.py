"""Regions under the schedules of the search: judged, equal to their definitions, as large and as much work as planned."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithm.models.gram import add_gram
from compilation.capture import InputSpec, capture
from compilation.interpret import Interpreter
from compilation.ops.base import Site
from compilation.passes.form import form_regions
from compilation.passes.narrow import narrow_rows
from compilation.passes.products import order_products
from compilation.pipeline import Compiler
from compilation.regions import plan
from compilation.regions.judge import judge
from compilation.regions.region import Region
from compilation.regions.run import run
from compilation.regions.search import options
from compilation.target import CORTEX_M
from compilation.tvm_adapter import import_model, importable
from compilation.tvm_adapter.vjp import gradient_of

TRIED = 3       # schedules of each kind


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, n, w = x.shape
        q, k, v = self.qkv(x).reshape(1, n, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, n, w))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attn = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Blocks on (1, tokens, width), then one token, or all, to a head."""

    def __init__(self, tokens: int, width: int, heads: int, hidden: int, one: bool, rank: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(*[Block(width, heads, hidden) for _ in range(2)])
        for block in self.blocks if rank else ():
            nn.init.normal_(add_gram(block.attn, tokens, width, rank).gram_b)
        self.head, self.one, self.shape = nn.Linear(width, 4), one, (tokens, width)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(x)
        return self.head(x[:, 0] if self.one else x.mean(1))


@cache
def regions(tokens: int, width: int, heads: int, hidden: int, one: bool = False, rank: int = 0,
            ordered: bool = True) -> list[Region]:
    """The distinct regions: attention, MLP, and with `one` those of a single query. rank: of Gram residuals; ordered: their
    products in the cheapest order, else as the model has them."""
    model = Vit(tokens, width, heads, hidden, one, rank)
    program = import_model(capture(model, InputSpec(model.shape), importable()), "vit")
    narrow_rows(program)
    if ordered:
        order_products(program)
    form_regions(program)
    return list(program.regions.values())


def site_of(region: Region, wants: list[str], updates: list[str], parts: dict[str, tuple[str, list[int]]]) -> Site:
    return Site({s.name: region.definition.tensors[s.name].shape for s in region.inputs}, {}, frozenset(wants),
                {s: (axis, len(index)) for s, (axis, index) in parts.items()}, frozenset(updates))


def holds(region: Region, wants: list[str], updates: list[str], parts: dict[str, tuple[str, list[int]]]) -> None:
    """A sample of schedules, those of the search and others, is judged and computes the definition, to rounding in float64;
    scratch and work are those that the search said."""
    rng = np.random.default_rng(0)
    site = site_of(region, wants, updates, parts)
    inputs = {s.name: rng.normal(size=site.shapes[s.name]) * (0.3 if s.kind == "matrix" else 1.0) for s in region.inputs}
    expected = region.reference(inputs, {})
    space = plan.space(region, site)
    every = options(lambda split: plan._statements(region, site, split), CORTEX_M)
    picked = [*space.options[::max(1, len(space.options) // TRIED)], *random.Random(1).sample(every, min(TRIED, len(every)))]
    outputs = {r: region.infer(site)[r].shape for r in wants if r not in updates}
    for option in picked:
        nest, layout = plan.nest(region, site, option.schedule), plan.layout(region, site, option.schedule)
        assert (nest.scratch, *layout.work(CORTEX_M)) == (option.scratch, option.macs, option.time), option.schedule
        judge(nest, site.shapes, outputs, site.parts, [u.removeprefix("d_") for u in updates])
        for one_scratch in (False, True):
            made = run(nest, inputs, outputs, parts, one_scratch=one_scratch)
            for name in wants:
                want = expected[name]
                if name.removeprefix("d_") in parts:
                    axis, index = parts[name.removeprefix("d_")]
                    want = np.take(want, index, int(axis == "cols"))
                scale = max(1.0, float(np.abs(want).max()))      # of a key's bias it is zero but for rounding
                assert np.abs(made[name].reshape(want.shape) - want).max() < 1e-11 * scale, (name, option.schedule)


def cases(region: Region) -> list[tuple[list[str], list[str], str]]:
    """(wanted, of these applied at once, how matrices are trained) of a gradient region."""
    kinds = {s.name: s.kind for s in region.outputs}
    vectors, matrices = ([r for r in region.results if kinds[r] == kind] for kind in ("vector", "matrix"))
    return [(["d_x"], [], ""), (["d_x", *vectors], vectors, ""), (vectors, vectors, ""),
            (["d_x", *vectors, *matrices], [*vectors, *matrices], ""), (["d_x", *matrices], matrices, "cols"),
            (["d_x", *matrices], matrices, "rows"), (list(region.results), [], "")]


CASES = {name: (which, 0, True) for which, name in enumerate(("attention", "mlp", "one query", "one row"))} | {
    "three products": (0, 3, True), "of a row": (2, 3, True), "as they are": (0, 3, False)}


@pytest.mark.parametrize(("which", "rank", "ordered"), CASES.values(), ids=CASES)
def test_every_schedule_computes_the_definition(which: int, rank: int, ordered: bool) -> None:
    region = regions(9, 8, 2, 12, True, rank, ordered)[which]
    holds(region, ["y"], [], {})
    gradient = gradient_of(region)
    assert gradient is not None
    for wants, updates, axis in cases(gradient):
        parts: dict[str, tuple[str, list[int]]] = {}
        for name in (r.removeprefix("d_") for r in updates if axis):
            size = gradient.definition.tensors[name].shape[int(axis == "cols")]
            parts[name] = axis, sorted(random.Random(name).sample(range(size), max(1, size // 4)))
        holds(gradient, wants, updates, parts)


# The bytes that follow from the tensors of a nest, for ViT-Small: 197 tokens, 384 features, 6 heads, 1,536 hidden features.
SMALL = (197, 384, 6, 1536)
TILE = 16 * 4       # bytes of sixteen tokens of one feature


def scratch(region: Region, wants: list[str], schedule: str) -> int:
    return plan.layout(region, site_of(region, wants, [w for w in wants if w.startswith("d_") and w != "d_x"], {}),
                       schedule).bound


def test_a_hidden_layer_exists_in_tiles() -> None:
    """Forward: u, z and the hidden tile; backward: u, du, the hidden tile twice, and sums for the vectors."""
    mlp = regions(*SMALL)[1]
    gradient = gradient_of(mlp)
    assert gradient is not None
    vectors = [s.name for s in gradient.outputs if s.kind == "vector"]
    bytes_ = {o.schedule: o.scratch for o in options(
        lambda split: plan._statements(mlp, site_of(mlp, ["y"], [], {}), split), CORTEX_M)}
    assert bytes_["n/16 o/64"] == (2 * 384 + 64) * TILE
    bytes_ = {o.schedule: o.scratch for o in options(
        lambda split: plan._statements(gradient, site_of(gradient, ["d_x", *vectors], vectors, {}), split), CORTEX_M)}
    assert bytes_["n/16 c/64"] == (2 * 384 + 2 * 64) * TILE + 4 * (1536 + 2 * 384)


def test_attention_without_the_gradient_of_its_input_needs_no_matrix() -> None:
    """A linear map of a sum is the sum of the maps: the norm's gradients are summed head by head and tile by tile."""
    gradient = gradient_of(regions(*SMALL)[0])
    assert gradient is not None
    vectors = [s.name for s in gradient.outputs if s.kind == "vector"]
    space = plan.space(gradient, site_of(gradient, vectors, vectors, {}))
    assert min(o.scratch for o in space.options) < 11_000 < 197 * 384 * 4


@pytest.mark.parametrize(("which", "gradient", "n", "d", "heads", "limit"), [
    (0, True, 37, 192, 3, 9_900), (1, True, 37, 192, 3, 9_900), (0, False, 65, 384, 6, 14_000),
    (1, False, 65, 384, 6, 14_000), (0, True, 197, 384, 6, 29_000)])
def test_regions_can_run_in_little_scratch(which: int, gradient: bool, n: int, d: int, heads: int, limit: int) -> None:
    """The smallest scratch, with the sums for biases and normalisation, that budgets rest on."""
    region: Region | None = regions(n, d, heads, 4 * d)[which]
    region = gradient_of(region) if gradient and region else region
    assert region is not None
    wants = ["d_x", *(s.name for s in region.outputs if s.kind == "vector")] if gradient else ["y"]
    sizes = [o.scratch for o in plan.space(region, site_of(region, wants, [], {})).options]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= limit


def test_a_sum_stands_in_the_result() -> None:
    """The gradient of LN(x), summed over heads, is as large as d_x and stands there: less scratch than a token matrix."""
    attention = regions(*SMALL)[0]
    gradient = gradient_of(attention)
    assert gradient is not None
    for region, wants in ((attention, ["y"]), (gradient, ["d_x"])):
        space = plan.space(region, site_of(region, wants, [], {}))
        assert space.options[-1].scratch < 11_000 < space.options[0].scratch < 197 * 384 * 4


@pytest.mark.parametrize("budget", [None, "smallest"])
@pytest.mark.parametrize("train", ["bias and norm", "columns", "all"])
def test_a_step_of_regions_is_that_of_whole_tensors(train: str, budget: str | None) -> None:
    """The whole compiler, in float64, whatever is formed into regions."""
    model = Vit(9, 12, 2, 20, one=True)
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    chosen: dict[str, Any] = {n: "all" for n, s in shapes.items() if train == "all" or len(s) == 1}
    if train == "columns":
        chosen = {n: {"cols": list(range(0, s[1], 3))} for n, s in shapes.items() if len(s) == 2}
    image = np.random.default_rng(0).normal(size=model.shape).astype(np.float32)
    compiler = Compiler(model, InputSpec(model.shape))
    planner = compiler.planner(chosen)
    losses = []
    for schedule in (planner.unconstrained(), planner.smallest() if budget else planner.at(0, 0, 0, None)):
        compiled = compiler.finish(schedule, schedule, None)
        step = Interpreter(compiled.program, compiled.values)
        losses.append([step.step(image, label, 0.1) for label in (0, 2, 3)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-12, atol=0)
