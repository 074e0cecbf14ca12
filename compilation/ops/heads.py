"""Linear layers of one token, head by head: each head is multiplied by its own rows of the weight.

What a linear layer makes of many tokens for one query to attend to need not be made: q_h (u W_h^T)^T = (q_h W_h) u^T, and
the mean of rows of u W_h^T + b_h is (the mean of rows of u) W_h^T + b_h.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import COUNT, matrix, part_size, tile, vector


class ByHead(Op):
    """W (H E, C): the rows of head h are h E .. (h + 1) E."""

    source, sized = "vt_heads.c", {"h": "heads"}
    attrs, legal = {"heads": (int, 1)}, {"heads": COUNT}

    def products(self, site: Site) -> int:
        """Elements of the weight's window."""
        return int(np.prod(site.shapes["w"])) if site.has("w") else 0

    def macs(self, site: Site) -> int:
        forward = "y" in self.slots or "d_x" in site.wants
        return self.products(site) * forward + ("d_w" in site.wants and part_size(site, "w"))

    def blocks(self, w: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
        """(H, E, C)."""
        return w.reshape(attrs["heads"], -1, w.shape[1])

    def _samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        """Whole, and trained in part, of every slot that there is."""
        for heads, e, c in ((3, 5, 33), (1, 12, 10), (6, 4, 300)):
            one, many, o = (1, heads * e), (heads, c), heads * e
            shapes = {"x": many if self.wide else one, "w": (o, c), "b": (o,), "dy": one if self.wide else many}
            made = {s.name: rng.normal(size=shapes[s.name]) for s in self.inputs}
            wants = tuple(s.name for s in self.outputs if s.sink or s.name == "d_x")
            cols, rows = [0, c // 2, c - 1], sorted({0, 1, o // 2, o - 1})
            for parts in ({}, {"w": ("cols", cols)}, {"w": ("rows", rows)}):
                yield Sample(made, {"heads": heads}, wants, dict(parts))
            for want in wants:
                given = {s: v for s, v in made.items() if want in self.needed_for.get(s, (want,))}
                yield Sample(given, {"heads": heads}, (want,))

    wide = False        # whether x has C features of each head, and not E

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        return self._samples(rng)


@register
class HeadLinear(ByHead):
    """y (1, H E): of each head h y_h = x_h W_h^T + b_h, x_h row h of x (H, C); b is not read where y is added to."""

    name, symbol, gradient, wide = "head_linear", "vt_head_linear", "head_linear_grad", True
    inputs, outputs = (tile("x"), matrix("w"), vector("b", True)), (tile("y"),)
    indices = "x: h c, w: h*e c, b: h*e -> y: 1 h*e"
    adds, once, vanishes = ("y",), ("b",), (("x", "b"), ("w", "b"))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        y = np.einsum("hc,hec->he", inputs["x"], self.blocks(inputs["w"], attrs))
        return {"y": y.reshape(1, -1) + inputs.get("b", 0.0)}


@register
class HeadLinearGrad(ByHead):
    """Gradients of head_linear."""

    name, symbol, wide = "head_linear_grad", "vt_head_linear_grad", True
    inputs, outputs = (tile("x", True), matrix("w"), tile("dy")), (tile("d_x"), matrix("d_w"), vector("d_b"))
    indices = "x: h c, w: h*e c, dy: 1 h*e -> d_x: h c, d_w: h*e c, d_b: h*e"
    adds, layout = ("d_x", "d_w", "d_b"), {"x": "rows", "d_x": "rows"}
    linear, needed_for = {"dy": ("d_x", "d_w", "d_b")}, {"x": ("d_w",), "w": ("d_x", "d_w")}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        dy = inputs["dy"].reshape(attrs["heads"], -1)
        made = {"d_b": inputs["dy"].reshape(-1)}
        if "w" in inputs:
            made["d_x"] = np.einsum("he,hec->hc", dy, self.blocks(inputs["w"], attrs))
        if "x" in inputs:
            made["d_w"] = np.einsum("he,hc->hec", dy, inputs["x"]).reshape(-1, inputs["x"].shape[1])
        return made


@register
class HeadLinearT(ByHead):
    """y (H, C): of each head h y_h = x_h W_h, x (1, H E)."""

    name, symbol, gradient = "head_linear_t", "vt_head_linear_t", "head_linear_t_grad"
    inputs, outputs = (tile("x"), matrix("w")), (tile("y"),)
    indices = "x: 1 h*e, w: h*e c -> y: h c"
    adds, layout, vanishes, linear = ("y",), {"y": "rows"}, (("x",), ("w",)), {"x": ("y",)}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": np.einsum("he,hec->hc", inputs["x"].reshape(attrs["heads"], -1), self.blocks(inputs["w"], attrs))}


@register
class HeadLinearTGrad(ByHead):
    """Gradients of head_linear_t."""

    name, symbol = "head_linear_t_grad", "vt_head_linear_t_grad"
    inputs, outputs = (tile("x", True), matrix("w"), tile("dy")), (tile("d_x"), matrix("d_w"))
    indices = "x: 1 h*e, w: h*e c, dy: h c -> d_x: 1 h*e, d_w: h*e c"
    adds, layout = ("d_x", "d_w"), {"dy": "rows"}
    linear, needed_for = {"dy": ("d_x", "d_w")}, {"x": ("d_w",), "w": ("d_x", "d_w")}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        made = {"d_x": np.einsum("hc,hec->he", inputs["dy"], self.blocks(inputs["w"], attrs)).reshape(1, -1)}
        if "x" in inputs:
            x = inputs["x"].reshape(attrs["heads"], -1)
            made["d_w"] = np.einsum("he,hc->hec", x, inputs["dy"]).reshape(-1, inputs["dy"].shape[1])
        return made
