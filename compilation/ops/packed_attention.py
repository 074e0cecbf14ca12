"""Softmax attention over packed queries, keys and values; never an N x N map."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import COUNT, fastest_first, grid, row_settings, tensor, width
from compilation.target import KEYS, TILES
from compilation.types import SUM, Type


def check_heads(features: int, heads: int) -> None:
    if features % heads:
        raise ValueError(f"{heads} heads do not divide {features} features")


class Heads(Op):
    source = "vt_packed_attention.c"
    indices = "qkv: n 3*w, dy: n w"
    attrs = {"heads": (int, 1), "rows": (int, 16)}
    legal = {"heads": COUNT, "rows": TILES}
    schedule = ("rows",)

    def check(self, site: Site) -> None:
        check_heads(site.shapes["qkv"][1] // 3, self.attr(site, "heads"))

    def dims(self, site: Site) -> dict[str, int]:
        n, packed = site.shapes["qkv"]
        return {"n": n, "width": packed // 3}

    def sizes(self, site: Site) -> tuple[int, int, int, int]:
        """(n, width, head size, panel width)."""
        n, packed = site.shapes["qkv"]
        return n, packed // 3, packed // 3 // self.attr(site, "heads"), width(n, self.attr(site, "rows"))

    def schedules(self, site: Site) -> Iterator[dict[str, Any]]:
        return fastest_first(self, site, grid(rows=row_settings(site.shapes["qkv"][0])))

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for n, heads, d in ((21, 2, 5), (5, 3, 16), (1, 1, 4)):
            made = {"qkv": rng.normal(0, 1.5, (n, 3 * heads * d)), "dy": rng.normal(size=(n, heads * d))}
            yield Sample({s.name: made[s.name] for s in self.inputs}, {"heads": heads}, ("d_qkv",))


@register
class PackedAttention(Heads):
    """y (N, D) = softmax(q k^T / sqrt(d)) v per head, from qkv (N, 3D): q | k | v, each heads x d."""

    name, symbol, gradient = "packed_attention", "vt_packed_attention", "packed_attention_grad"
    inputs, outputs, vanishes = (tensor("qkv"),), (tensor("y"),), (("qkv",),)

    def infer(self, site: Site) -> dict[str, Type]:
        n, packed = site.shapes["qkv"]
        return {"y": Type((n, packed // 3))}

    def macs(self, site: Site) -> int:
        n, w, _, _ = self.sizes(site)
        return 2 * n * n * w

    def scratch(self, site: Site) -> int:
        n, _, d, t = self.sizes(site)
        return SUM.of(t * (2 * d + min(KEYS, n)))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": ref.packed_attention(inputs["qkv"], attrs["heads"])}


@register
class PackedAttentionGrad(Heads):
    """d_qkv (N, 3D); the probabilities are computed again, a few rows at a time."""

    name, symbol = "packed_attention_grad", "vt_packed_attention_grad"
    inputs, outputs = (tensor("qkv"), tensor("dy")), (tensor("d_qkv"),)

    def infer(self, site: Site) -> dict[str, Type]:
        return {"d_qkv": Type(site.shapes["qkv"])}

    def macs(self, site: Site) -> int:
        n, w, _, _ = self.sizes(site)
        return 7 * n * n * w

    def scratch(self, site: Site) -> int:
        n, _, d, t = self.sizes(site)
        return SUM.of(t * ((3 if t > 1 else 2) * d + 2 * min(KEYS, n)))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"d_qkv": ref.packed_attention_grad(inputs["qkv"], inputs["dy"], attrs["heads"])}
