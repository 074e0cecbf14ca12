"""Operations that pick or pool rows and columns of a token matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import COUNT, index_list, tensor
from compilation.types import Type


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

    vanishes = (("x",),)

    name, symbol, gradient = "take_row", "vt_take_row", "take_row_grad"
    inputs, outputs, indices = (tensor("x"),), (tensor("y"),), "x: n d"
    attrs = {"row": (int, 0)}

    def infer(self, site: Site) -> dict[str, Type]:
        return {"y": Type((1, site.shapes["x"][1]))}

    def dims(self, site: Site) -> dict[str, int]:
        return {"d": site.shapes["x"][1]}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["x"][attrs["row"]][None]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"x": rng.normal(size=(5, 7))}, {"row": 0})
        yield Sample({"x": rng.normal(size=(5, 7))}, {"row": 4})


@register
class TakeRowGrad(Rows):
    """d_x (n, D) = 0 but for d_x[row] = dy."""

    name, symbol = "take_row_grad", "vt_take_row_grad"
    inputs, outputs, indices = (tensor("dy"),), (tensor("d_x"),), "dy: 1 d"
    attrs = {"row": (int, 0), "n": (int, 1)}

    def infer(self, site: Site) -> dict[str, Type]:
        return {"d_x": Type((self.attr(site, "n"), site.shapes["dy"][1]))}

    def dims(self, site: Site) -> dict[str, int]:
        return {"d": site.shapes["dy"][1]}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        dx = np.zeros((attrs["n"], inputs["dy"].shape[1]))
        dx[attrs["row"]] = inputs["dy"][0]
        return {"d_x": dx}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"dy": rng.normal(size=(1, 7))}, {"row": 2, "n": 5}, ("d_x",))


@register
class MeanRows(Rows):
    """y (1, D) = mean of rows start.. of x."""

    vanishes = (("x",),)

    name, symbol, gradient = "mean_rows", "vt_mean_rows", "mean_rows_grad"
    inputs, outputs, indices = (tensor("x"),), (tensor("y"),), "x: n d"
    attrs = {"start": (int, 0)}

    def infer(self, site: Site) -> dict[str, Type]:
        return {"y": Type((1, site.shapes["x"][1]))}

    def dims(self, site: Site) -> dict[str, int]:
        return {"tokens": site.shapes["x"][0], "d": site.shapes["x"][1]}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["x"][attrs["start"]:].mean(0, keepdims=True)}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"x": rng.normal(size=(5, 7))}, {"start": 1})
        yield Sample({"x": rng.normal(size=(6, 3))}, {"start": 0})


@register
class MeanRowsGrad(Rows):
    """d_x (n, D) = dy / (n - start) in rows start.., 0 above."""

    name, symbol = "mean_rows_grad", "vt_mean_rows_grad"
    inputs, outputs, indices = (tensor("dy"),), (tensor("d_x"),), "dy: 1 d"
    attrs = {"start": (int, 0), "n": (int, 1)}

    def infer(self, site: Site) -> dict[str, Type]:
        return {"d_x": Type((self.attr(site, "n"), site.shapes["dy"][1]))}

    def dims(self, site: Site) -> dict[str, int]:
        return {"d": site.shapes["dy"][1]}

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
    inputs, outputs, indices = (tensor("x"), index_list("index", "x")), (tensor("y"),), "x: n d, index: k"

    def infer(self, site: Site) -> dict[str, Type]:
        return {"y": Type((site.shapes["x"][0], site.shapes["index"][0]))}

    def dims(self, site: Site) -> dict[str, int]:
        return {"n": site.shapes["x"][0], "d": site.shapes["x"][1], "k": site.shapes["index"][0]}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["x"][:, inputs["index"].astype(int)]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"x": rng.normal(size=(5, 7)), "index": np.array([0, 3, 6])})
