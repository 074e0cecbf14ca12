"""Softmax attention of any queries, keys and values; never an N x N map. The sums come from the C header's sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import COUNT, tile
from compilation.ops.indices import Axis
from compilation.target import KEYS, QUERIES
from compilation.types import SUM


class AttentionOp(Op):
    """q (N, H d), k (M, H d), v (M, H e): head h has columns h d .. of q and k, h e .. of v. scale 0 is 1 / sqrt(d)."""

    source = "vt_attention.c"
    attrs, legal = {"heads": (int, 1), "scale": (float, 0.0)}, {"heads": COUNT}
    sized, limit, slow = {"h": "heads"}, {"n": QUERIES}, 2.0

    def grain(self, wants: Iterable[str]) -> tuple[Axis, Axis]:
        """Scores, side by side for several queries."""
        return Axis("n"), Axis("m")

    def macs(self, site: Site) -> int:
        sizes, (along, across) = self.bind(site), self.times(site)
        return sizes["n"] * sizes["m"] * sizes["h"] * (along * sizes["d"] + across * self.values(site))

    def times(self, site: Site) -> tuple[int, int]:
        """How many products over d, and over e, each query makes with each key."""
        return 1, 1

    def values(self, site: Site) -> int:
        """e, features of a head's value; 0 where neither it nor its gradient is there."""
        return self.bind(site).get("e", 0)

    def scores(self, site: Site) -> tuple[int, int, int]:
        """(queries, features of a head, keys at a time)."""
        sizes = self.bind(site)
        return sizes["n"], sizes["d"], min(KEYS, sizes["m"])

    def dims(self, site: Site) -> dict[str, int]:
        return {**super().dims(site), **({"first": 1, "last": 1} if self.carried else {})}

    def _samples(self, rng: np.random.Generator) -> Iterator[tuple[Arrays, dict[str, Any]]]:
        for n, m, heads, d, e in ((13, 21, 2, 5, 5), (5, 5, 3, 16, 4), (1, 9, 2, 4, 7), (16, 1, 1, 3, 3)):
            attrs: dict[str, Any] = {"heads": heads, "scale": 0.3 if e == 7 else 0.0}
            made = {"q": rng.normal(0, 1.5, (n, heads * d)), "k": rng.normal(0, 1.5, (m, heads * d)),
                    "v": rng.normal(size=(m, heads * e)), "dy": rng.normal(size=(n, heads * e))}
            made |= ref.attention_statistics(made, heads, attrs["scale"])
            yield {s.name: made[s.name] for s in self.inputs}, attrs


@register
class Attention(AttentionOp):
    """y (N, H e) = softmax(scale q k^T) v for each head; high, total (N, H) carry it from keys to keys."""

    name, symbol, gradient = "attention", "vt_attention", "attention_grad"
    inputs = (tile("q"), tile("k"), tile("v"))
    outputs, vanishes = (tile("y"), tile("high", True), tile("total", True)), (("v",),)
    indices = "q: n h*d, k: m h*d, v: m h*e -> y: n h*e, high: n h, total: n h"
    carried, layout = {"m": ("high", "total")}, {"k": "rows", "v": "rows", "y": "rows"}
    linear, shift_free, scored, mixed = {"v": ("y",)}, ("k",), ("q", "k"), "v"

    def scratch(self, site: Site) -> int:
        n, d, keys = self.scores(site)
        return SUM.of((d + keys) * n)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": ref.attention(inputs, attrs["heads"], attrs["scale"])}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for made, attrs in self._samples(rng):
            yield Sample(made, attrs)


@register
class AttentionStatistics(AttentionOp):
    """high, total, delta (N, H) of each query and head: the maximum of its scores s, the sum of e^(s - high), and that of
    e^(s - high) times the value's product with dy: all that its gradient has to know of the other keys."""

    name, symbol = "attention_statistics", "vt_attention_statistics"
    joint = True
    inputs, outputs = (tile("q"), tile("k"), tile("v"), tile("dy")), (tile("high"), tile("total"), tile("delta"))
    indices = "q: n h*d, k: m h*d, v: m h*e, dy: n h*e -> high: n h, total: n h, delta: n h"
    carried = {"m": ("high", "total", "delta")}
    layout = {"k": "rows", "v": "rows", "dy": "panel"}
    linear = {"dy": ("delta",)}

    def scratch(self, site: Site) -> int:
        n, d, keys = self.scores(site)
        return SUM.of((d + 2 * keys) * n)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return ref.attention_statistics(inputs, attrs["heads"], attrs["scale"])

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for made, attrs in self._samples(rng):
            yield Sample(made, attrs)


@register
class AttentionGrad(AttentionOp):
    """Gradients of attention, and its result y again; the probabilities are computed again from the statistics."""

    name, symbol = "attention_grad", "vt_attention_grad"
    inputs = (tile("q"), tile("k"), tile("v"), tile("dy"), tile("high"), tile("total"), tile("delta"))
    outputs = (tile("d_q"), tile("d_k"), tile("d_v"), tile("y"))
    indices = ("q: n h*d, k: m h*d, v: m h*e, dy: n h*e, high: n h, total: n h, delta: n h "
               "-> d_q: n h*d, d_k: m h*d, d_v: m h*e, y: n h*e")
    needed_for = {"v": ("d_q", "d_k", "y"), "dy": ("d_q", "d_k", "d_v"), "delta": ("d_q", "d_k")}
    adds, layout = ("d_q", "d_k", "d_v", "y"), dict.fromkeys(("k", "v", "dy", "d_q", "d_k", "d_v", "y"), "rows")
    linear, joint, before, remakes = {"dy": ("d_v",)}, True, "attention_statistics", {"y": "y"}

    def slopes(self, site: Site) -> bool:
        """Whether the gradient of the scores is made."""
        return bool(site.wants & {"d_q", "d_k"})

    def times(self, site: Site) -> tuple[int, int]:
        return 1 + len(site.wants & {"d_q", "d_k"}), self.slopes(site) + len(site.wants & {"d_v", "y"})

    def scratch(self, site: Site) -> int:
        n, d, keys = self.scores(site)
        slopes, many = self.slopes(site), n > 1
        features = d * (1 + (many and "d_k" in site.wants)) + self.values(site) * (many and slopes)
        return SUM.of((features + (1 + slopes) * keys) * n)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return ref.attention_grad(inputs, attrs["heads"], attrs["scale"])

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for made, attrs in self._samples(rng):
            for wants in (("d_q", "d_k", "d_v"), ("d_q", "d_k", "d_v", "y"), ("d_q",), ("d_k", "d_v"), ("d_v",), ("y",),
                          ("d_q", "y")):
                given = {s: v for s, v in made.items() if not set(self.needed_for.get(s, wants)).isdisjoint(wants)}
                yield Sample(given, attrs, wants)
