"""Linear layers over token rows, whole or with some columns or rows trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops.base import Arrays, Op, Sample, Site, Slot, register
from compilation.ops.common import by_columns, matrix, part_size, tile, vector


@register
class Linear(Op):
    """y (N, O) = x (N, C) w^T + b, on panels; b is not read where y is added to."""

    name, symbol, source, gradient = "linear", "vt_linear", "vt_linear.c", "linear_grad"
    inputs, outputs = (tile("x"), matrix("w"), vector("b", True)), (tile("y"),)
    indices = "x: n c, w: o c, b: o -> y: n o"
    adds, once, layout = ("y",), ("b",), {"x": "panel", "y": "panel"}
    by_head = ("head_linear_t", "head_linear")
    vanishes, shifts = (("x", "b"), ("w", "b")), ("x", "b")

    def macs(self, site: Site) -> int:
        (n, c), o = site.shapes["x"], site.shapes["w"][0]
        return n * o * c

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["x"] @ inputs["w"].T + inputs.get("b", 0.0)}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for n, c, o in ((19, 33, 21), (1, 12, 10), (6, 5, 37), (3, 300, 8)):      # 300: sums in two blocks
            made = {"x": rng.normal(size=(n, c)), "w": rng.normal(size=(o, c)), "b": rng.normal(size=o)}
            yield Sample(made)
            yield Sample({k: made[k] for k in ("x", "w")}, parts={"w": ("cols", [0, c // 2, c - 1])})
            yield Sample(made, parts={"w": ("rows", [1, 2, o - 1])})


@register
class LinearGrad(Op):
    """Gradients of linear. For d_w it reads x, or x_part: its trained columns alone."""

    name, symbol, source = "linear_grad", "vt_linear_grad", "vt_linear.c"
    inputs = (tile("x", True), Slot("x_part", "tile", True, of="w"), matrix("w"), tile("dy"))
    outputs = (tile("d_x"), matrix("d_w"), vector("d_b"))
    indices = "x: n c, x_part: n [k], w: o c, dy: n o -> d_x: n c, d_w: o c, d_b: o"
    adds, layout = ("d_x", "d_w", "d_b"), {"x": "rows", "x_part": "rows", "d_x": "rows"}
    linear = {"dy": ("d_x", "d_w", "d_b")}
    needed_for = {"x": ("d_w",), "x_part": ("d_w",), "w": ("d_x", "d_w")}

    def check(self, site: Site) -> None:
        if site.has("x_part") and (not by_columns(site, "w") or site.shapes["x_part"][1] != site.part("w")[1]):
            raise ValueError("x_part has to be the columns of x in which w is trained")
        if "d_w" in site.wants and site.has("x") == site.has("x_part"):
            raise ValueError("d_w is made of x or of x_part")

    def macs(self, site: Site) -> int:
        (n, o), c = site.shapes["dy"], site.shapes["w"][1] if site.has("w") else 0
        return n * o * c * ("d_x" in site.wants) + ("d_w" in site.wants and n * part_size(site, "w"))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        made = {"d_b": inputs["dy"].sum(0)}
        if "w" in inputs:
            made["d_x"] = inputs["dy"] @ inputs["w"]
        for x in {"x", "x_part"} & inputs.keys():
            made["d_w"] = inputs["dy"].T @ inputs[x]
        return made

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for n, c, o in ((19, 33, 21), (1, 12, 10), (6, 5, 37)):
            made = {"x": rng.normal(size=(n, c)), "w": rng.normal(size=(o, c)), "dy": rng.normal(size=(n, o))}
            every, cols = ("d_x", "d_w", "d_b"), [0, c // 2, c - 1]
            some = sorted({1, 2, 3, 4, 6, 8, o - 2, o - 1})       # consecutive rows, and four together that are not
            yield Sample(made, wants=every)
            yield Sample({k: made[k] for k in ("w", "dy")}, wants=("d_x",))
            yield Sample({"dy": made["dy"]}, wants=("d_b",))
            yield Sample(made, wants=every, parts={"w": ("cols", cols)})
            cut = {"x_part": made["x"][:, cols], "w": made["w"], "dy": made["dy"]}
            yield Sample(cut, wants=("d_w",), parts={"w": ("cols", cols)})
            yield Sample(made, wants=every, parts={"w": ("rows", some)})
