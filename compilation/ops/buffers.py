"""What a region does with buffers of its own: fill them with zeros, and apply a gradient that was summed in one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import matrix, tile
from compilation.types import Type


@register
class Fill(Op):
    """y = 0. Not of the outer Program, where nothing says how large y is."""

    name, symbol, source = "fill", "vt_fill_zero", "vt_buffers.c"
    inputs, outputs = (), (tile("y"),)
    indices, inner = "-> y: n c", True

    def bind(self, site: Site) -> dict[str, int]:
        return dict(zip("nc", site.shapes.get("y", (1, 1)), strict=True))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": np.zeros((1, 1))}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        return iter(())


@register
class Apply(Op):
    """v = momentum * v + d_w; w -= lr * v on the trained part of a weight's window, in place (`Call.updates` names w).

    d_w has the trained rows and columns of the window alone. The step gives lr and momentum.
    """

    name, symbol, source = "apply", "vt_apply_weight", "vt_buffers.c"
    inputs, outputs = (matrix("w"), tile("d_w")), ()
    indices, own_update, inner = "w: o c, d_w: o c", "w", True

    def bind(self, site: Site) -> dict[str, int]:
        return super().bind(Site({"w": site.shapes["w"]}, site.attrs))

    def infer(self, site: Site) -> dict[str, Type]:
        return {}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        w, g = rng.normal(size=(7, 9)), rng.normal(size=(7, 9))
        yield Sample({"w": w, "d_w": g})
        yield Sample({"w": w, "d_w": g[:, [0, 4, 8]]}, parts={"w": ("cols", [0, 4, 8])})
        yield Sample({"w": w, "d_w": g[[1, 6]]}, parts={"w": ("rows", [1, 6])})
