"""Linear layers over token rows, whole or with some columns or rows trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import (
    FLAG,
    ROWS,
    by_columns,
    fastest_first,
    grid,
    matrix,
    part_shape,
    part_size,
    row_settings,
    stage_width,
    tensor,
    vector,
    width,
)
from compilation.types import SUM, Type


@register
class Linear(Op):
    """y (N, O) = x (N, C) w^T + b."""

    name, symbol, source, gradient = "linear", "vt_linear", "vt_linear.c", "linear_grad"
    inputs, outputs = (tensor("x"), matrix("w"), vector("b", True)), (tensor("y"),)
    indices = "x: n c, w: o c, b: o"
    attrs, legal = {"rows": (int, 16)}, {"rows": ROWS}
    schedule, rowwise, vanishes = ("rows",), ("x",), (("x", "b"), ("w", "b"))

    def infer(self, site: Site) -> dict[str, Type]:
        return {"y": Type((site.shapes["x"][0], site.shapes["w"][0]))}

    def dims(self, site: Site) -> dict[str, int]:
        return {"n": site.shapes["x"][0]}

    def macs(self, site: Site) -> int:
        (n, c), o = site.shapes["x"], site.shapes["w"][0]
        return n * o * c

    def scratch(self, site: Site) -> int:
        t = width(site.shapes["x"][0], self.attr(site, "rows"))
        return SUM.of(sum(site.shapes["w"]) * t) if t > 1 else 0

    def schedules(self, site: Site) -> Iterator[dict[str, Any]]:
        return fastest_first(self, site, grid(rows=row_settings(site.shapes["x"][0])))

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
    """Gradients of linear. x is read for d_w only, and may be its trained columns alone (x_sliced)."""

    name, symbol, source = "linear_grad", "vt_linear_grad", "vt_linear.c"
    inputs = (tensor("x", True), matrix("w"), tensor("dy"))
    outputs = (tensor("d_x"), matrix("d_w"), vector("d_b"))
    indices = "x: n k, w: o c, dy: n o"
    attrs, legal = {"x_sliced": (int, 0)}, {"x_sliced": FLAG}
    needed_for = {"x": ("d_w",)}

    def check(self, site: Site) -> None:
        sliced = bool(self.attr(site, "x_sliced"))
        columns = (part_shape(site, "w") if sliced else site.shapes["w"])[1]
        if sliced and not by_columns(site, "w"):
            raise ValueError("x_sliced asks for a weight that is trained by columns")
        if site.has("x") and site.shapes["x"][1] != columns:
            raise ValueError(f"x has {site.shapes['x'][1]} columns, not {columns}")

    def infer(self, site: Site) -> dict[str, Type]:
        n, o = site.shapes["dy"]
        return {"d_x": Type((n, site.shapes["w"][1])), "d_w": Type(part_shape(site, "w")), "d_b": Type((o,))}

    def dims(self, site: Site) -> dict[str, int]:
        return {"n": site.shapes["dy"][0]}

    def macs(self, site: Site) -> int:
        n, o = site.shapes["dy"]
        c = site.shapes["w"][1]
        return n * o * c * ("d_x" in site.wants) + n * part_size(site, "w") * ("d_w" in site.wants)

    def scratch(self, site: Site) -> int:
        if "d_w" not in site.wants or self.attr(site, "x_sliced") or not by_columns(site, "w"):
            return 0
        return SUM.of(site.shapes["dy"][0] * stage_width(part_shape(site, "w")[1]))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        made = {"d_x": inputs["dy"] @ inputs["w"], "d_b": inputs["dy"].sum(0)}
        if "x" in inputs:
            made["d_w"] = inputs["dy"].T @ inputs["x"]
        return made

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for n, c, o in ((19, 33, 21), (1, 12, 10), (6, 5, 37)):
            made = {"x": rng.normal(size=(n, c)), "w": rng.normal(size=(o, c)), "dy": rng.normal(size=(n, o))}
            every, cols = ("d_x", "d_w", "d_b"), [0, c // 2, c - 1]
            some = sorted({1, 2, 3, 4, 6, 8, o - 2, o - 1})       # consecutive rows, and four together that are not
            yield Sample(made, wants=every)
            yield Sample({k: made[k] for k in ("w", "dy")}, wants=("d_x",))
            yield Sample(made, wants=every, parts={"w": ("cols", cols)})
            yield Sample({**made, "x": made["x"][:, cols]}, {"x_sliced": 1}, ("d_w",), {"w": ("cols", cols)})
            yield Sample(made, wants=every, parts={"w": ("rows", some)})
