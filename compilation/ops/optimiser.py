"""The update of a parameter whose gradient was written out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import tensor, vector
from compilation.types import Type


@register
class Sgd(Op):
    """v = momentum * v + g; p -= lr * v, in place (`Call.updates` names p). The step gives lr and momentum."""

    name, symbol, source = "sgd", "vt_sgd", "vt_elementwise.c"
    inputs, outputs = (vector("p"), tensor("g")), ()
    indices, own_update = "", "p"

    def infer(self, site: Site) -> dict[str, Type]:
        return {}

    def dims(self, site: Site) -> dict[str, int]:
        return {"size": math.prod(site.shapes["g"])}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        yield Sample({"p": rng.normal(size=(5, 7)), "g": rng.normal(size=(5, 7))})
        yield Sample({"p": rng.normal(size=33), "g": rng.normal(size=33)})
