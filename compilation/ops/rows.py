"""Operations that pick or pool rows and columns of a token matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import COUNT, index_list, tile


class Rows(Op):
    """`row` or `start` is a row of the n that x (or d_x) has."""

    source = "vt_rows.c"
    legal = {"row": range(2**31), "start": range(2**31), "n": COUNT}

    def check(self, site: Site) -> None:
        n = site.shapes["x"][0] if site.has("x") else self.attr(site, "n")
        for name in {"row", "start"} & set(self.attrs):
            if self.attr(site, name) >= n:
                raise ValueError(f"{name} is {self.attr(site, name)}, of {n} rows")


@register
class TakeRow(Rows):
    """y (1, D) = x[row]."""

    vanishes, linear = (("x",),), {"x": ("y",)}

    name, symbol, gradient = "take_row", "vt_take_row", "take_row_grad"
    inputs, outputs, indices = (tile("x"),), (tile("y"),), "x: [n] c -> y: 1 c"
    attrs = {"row": (int, 0)}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["x"][attrs["row"]][None]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"x": rng.normal(size=(5, 7))}, {"row": 0})
        yield Sample({"x": rng.normal(size=(5, 7))}, {"row": 4})


@register
class TakeRowGrad(Rows):
    """d_x (n, D) = 0 but for d_x[row] = dy. Where it adds, it touches that row alone."""

    name, symbol = "take_row_grad", "vt_take_row_grad"
    inputs, outputs, indices = (tile("dy"),), (tile("d_x"),), "dy: 1 c -> d_x: [n] c"
    sized, linear, adds = {"n": "n"}, {"dy": ("d_x",)}, ("d_x",)
    attrs = {"row": (int, 0), "n": (int, 1)}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        dx = np.zeros((attrs["n"], inputs["dy"].shape[1]))
        dx[attrs["row"]] = inputs["dy"][0]
        return {"d_x": dx}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"dy": rng.normal(size=(1, 7))}, {"row": 2, "n": 5}, ("d_x",))


@register
class MeanRows(Rows):
    """y (1, D) = mean of rows start.. of x."""

    vanishes, linear = (("x",),), {"x": ("y",)}

    name, symbol, gradient = "mean_rows", "vt_mean_rows", "mean_rows_grad"
    inputs, outputs, indices = (tile("x"),), (tile("y"),), "x: [n] c -> y: 1 c"
    attrs = {"start": (int, 0)}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["x"][attrs["start"]:].mean(0, keepdims=True)}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"x": rng.normal(size=(5, 7))}, {"start": 1})
        yield Sample({"x": rng.normal(size=(6, 3))}, {"start": 0})


@register
class MeanRowsGrad(Rows):
    """d_x (n, D) = dy / (n - start) in rows start.., 0 above."""

    name, symbol = "mean_rows_grad", "vt_mean_rows_grad"
    inputs, outputs, indices = (tile("dy"),), (tile("d_x"),), "dy: 1 c -> d_x: [n] c"
    sized, linear = {"n": "n"}, {"dy": ("d_x",)}
    attrs = {"start": (int, 0), "n": (int, 1)}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        dx = np.zeros((attrs["n"], inputs["dy"].shape[1]))
        dx[attrs["start"]:] = inputs["dy"] / (attrs["n"] - attrs["start"])
        return {"d_x": dx}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"dy": rng.normal(size=(1, 7))}, {"start": 1, "n": 5}, ("d_x",))


@register
class TakeCols(Rows):
    """y (N, k) = the listed columns of x: what a gradient of some columns of a weight needs to keep."""

    name, symbol = "take_cols", "vt_take_cols"
    inputs, outputs, indices = (tile("x"), index_list("index", "x")), (tile("y"),), "x: n [c], index: k -> y: n k"
    linear = {"x": ("y",)}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["x"][:, inputs["index"].astype(int)]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"x": rng.normal(size=(5, 7)), "index": np.array([0, 3, 6])})
