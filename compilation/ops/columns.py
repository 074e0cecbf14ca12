"""A window of columns of a token matrix, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import COUNT, tile


class Window(Op):
    """Columns start .. start + count of `width`."""

    source = "vt_columns.c"
    legal = {"start": range(2**31), "count": COUNT, "width": COUNT}

    def check(self, site: Site) -> None:
        sizes, start = self.bind(site), self.attr(site, "start")
        if start + sizes["c"] > sizes["w"]:
            raise ValueError(f"columns {start} to {start + sizes['c'] - 1} are wanted, of {sizes['w']}")


@register
class Columns(Window):
    """y (N, count) = x[:, start:start + count]."""

    name, symbol, gradient = "columns", "vt_columns", "columns_grad"
    inputs, outputs, indices = (tile("x"),), (tile("y"),), "x: n [w] -> y: n [c]"
    sized, attrs = {"c": "count"}, {"start": (int, 0), "count": (int, 1)}
    vanishes, linear, shifts = (("x",),), {"x": ("y",)}, ("x",)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["x"][:, attrs["start"]:attrs["start"] + attrs["count"]]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"x": rng.normal(size=(5, 7))}, {"start": 2, "count": 3})
        yield Sample({"x": rng.normal(size=(1, 4))}, {"start": 3, "count": 1})


@register
class ColumnsGrad(Window):
    """d_x (N, width) = 0 but for d_x[:, start:start + C] = dy."""

    name, symbol = "columns_grad", "vt_columns_grad"
    inputs, outputs, indices = (tile("dy"),), (tile("d_x"),), "dy: n [c] -> d_x: n [w]"
    sized, attrs, linear = {"w": "width"}, {"start": (int, 0), "width": (int, 1)}, {"dy": ("d_x",)}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        n, count = inputs["dy"].shape
        dx = np.zeros((n, attrs["width"]))
        dx[:, attrs["start"]:attrs["start"] + count] = inputs["dy"]
        return {"d_x": dx}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"dy": rng.normal(size=(5, 3))}, {"start": 2, "width": 7}, ("d_x",))
