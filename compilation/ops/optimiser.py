"""The update of a parameter whose gradient was written out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import tile, vector


@register
class Sgd(Op):
    """v = momentum * v + g; p -= lr * v, in place (`Call.updates` names p). The step gives lr and momentum.

    p has the elements of g, rows one after another (of a weight in part, those of its trained part). Of a window, field `ld`
    is the columns of the whole.
    """

    name, symbol, source = "sgd", "vt_sgd", "vt_elementwise.c"
    inputs, outputs = (vector("p"), tile("g")), ()
    indices, own_update = "g: *n c", "p"

    def dims(self, site: Site) -> dict[str, int]:
        made = super().dims(site)
        return {**made, "ld": made["c"]}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"p": rng.normal(size=(5, 7)), "g": rng.normal(size=(5, 7))})
        yield Sample({"p": rng.normal(size=33), "g": rng.normal(size=33)})
