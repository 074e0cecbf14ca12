"""The Gram low-rank residual T = (X X^T / D)(A B), computed as X ((X^T A) B) / D."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import COUNT, fastest_first, grid, row_settings, tensor, vector, width
from compilation.target import TILES
from compilation.types import SUM, Type


@dataclass(frozen=True)
class GramPart:
    """Work and scratch of vt_gram_part.h: n tokens, q rows made, d features, r ranks, `block` of them at a time."""

    n: int
    q: int
    d: int
    r: int
    rows: int
    block: int

    @property
    def panel(self) -> tuple[int, int]:
        t = width(self.n, self.rows)
        return t, width(self.q, t)

    @property
    def ranks(self) -> int:
        return min(self.r, self.block)

    def forward_macs(self) -> int:
        return (self.n + 2 * self.q) * self.d * self.r

    def forward_scratch(self) -> int:
        t, tq = self.panel
        return SUM.of(self.ranks * self.d + self.d * t + self.ranks * tq)

    def backward_macs(self, dx: bool, da: bool, db: bool, dls: bool) -> int:
        u, v, w = dx or db or dls, dx or da, db or dls
        each = self.n * u + 2 * self.q * w + 2 * self.q * v + (self.q + self.n) * dx + self.n * da
        return each * self.d * self.r

    def backward_scratch(self, dx: bool, da: bool, db: bool, dls: bool) -> int:
        t, tq = self.panel
        kept = (dx or db or dls) + (dx or da) + (db or dls)
        return SUM.of(self.ranks * self.d * kept + self.d * t + self.ranks * (t if da else tq))


def rank_blocks(r: int) -> list[int]:
    return sorted({r, *(b for b in (16, 4, 1) if b < r)}, reverse=True)


class GramOp(Op):
    source = "vt_gram.c"
    indices = "x: n d, a: n r, b: r d, dy: n d"
    attrs = {"rows": (int, 16), "gram_block": (int, 64)}
    legal = {"rows": TILES, "gram_block": COUNT}
    schedule = ("rows", "gram_block")

    def dims(self, site: Site) -> dict[str, int]:
        return {"n": site.shapes["x"][0], "d": site.shapes["x"][1], "r": site.shapes["b"][0]}

    def part(self, site: Site) -> GramPart:
        n, d = site.shapes["x"]
        return GramPart(n, n, d, site.shapes["b"][0], self.attr(site, "rows"), self.attr(site, "gram_block"))

    def schedules(self, site: Site) -> Iterator[dict[str, Any]]:
        settings = grid(rows=row_settings(site.shapes["x"][0]), gram_block=rank_blocks(site.shapes["b"][0]))
        return fastest_first(self, site, settings)

    def _samples(self, rng: np.random.Generator) -> Iterator[Arrays]:
        for n, d, r in ((19, 12, 6), (3, 21, 17), (1, 5, 2)):
            made = {"x": rng.normal(size=(n, d)), "a": rng.normal(size=(n, r)), "b": rng.normal(size=(r, d)),
                    "dy": rng.normal(size=(n, d))}
            yield {s.name: made[s.name] for s in self.inputs}


@register
class Gram(GramOp):
    """y (N, D) = x ((x^T a) b) / D, a (N, r), b (r, D); no N x N matrix."""

    name, symbol, gradient = "gram", "vt_gram", "gram_grad"
    inputs, outputs = (tensor("x"), vector("a"), vector("b")), (tensor("y"),)
    vanishes = (("x",), ("a",), ("b",))

    def infer(self, site: Site) -> dict[str, Type]:
        return {"y": Type(site.shapes["x"])}

    def macs(self, site: Site) -> int:
        return self.part(site).forward_macs()

    def scratch(self, site: Site) -> int:
        return self.part(site).forward_scratch()

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": ref.gram(inputs["x"], inputs["a"], inputs["b"])}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for made in self._samples(rng):
            yield Sample(made)


@register
class GramGrad(GramOp):
    """Gradients of gram."""

    name, symbol = "gram_grad", "vt_gram_grad"
    inputs = (tensor("x"), vector("a"), vector("b"), tensor("dy"))
    outputs = (tensor("d_x"), vector("d_a"), vector("d_b"))

    def infer(self, site: Site) -> dict[str, Type]:
        return {f"d_{s}": Type(site.shapes[s]) for s in ("x", "a", "b")}

    def wanted(self, site: Site) -> tuple[bool, bool, bool, bool]:
        return "d_x" in site.wants, "d_a" in site.wants, "d_b" in site.wants, False

    def macs(self, site: Site) -> int:
        return self.part(site).backward_macs(*self.wanted(site))

    def scratch(self, site: Site) -> int:
        return self.part(site).backward_scratch(*self.wanted(site))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        dx, da, db = ref.gram_grad(inputs["x"], inputs["a"], inputs["b"], inputs["dy"])
        return {"d_x": dx, "d_a": da, "d_b": db}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for made in self._samples(rng):
            for wants in (("d_x", "d_a", "d_b"), ("d_x",), ("d_a",), ("d_b",)):
                yield Sample(made, wants=wants)
