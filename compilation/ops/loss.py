"""Softmax cross-entropy of one example."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import tensor
from compilation.types import LABEL, Type


class Loss(Op):
    source = "vt_loss.c"
    indices = "logits: 1 k, label: 1"
    inputs = (tensor("logits"), tensor("label", element=LABEL))

    def dims(self, site: Site) -> dict[str, int]:
        return {"k": site.shapes["logits"][1]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for k in (10, 3, 100):
            yield Sample({"logits": rng.normal(0, 3, (1, k)), "label": np.array([k - 1])}, wants=("d_logits",))


@register
class CrossEntropy(Loss):
    """loss (1,) = log sum exp(logits) - logits[label]."""

    name, symbol, gradient = "cross_entropy", "vt_cross_entropy", "cross_entropy_grad"
    outputs = (tensor("loss"),)

    def infer(self, site: Site) -> dict[str, Type]:
        return {"loss": Type((1,))}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"loss": np.array([ref.cross_entropy(inputs["logits"], int(inputs["label"][0]))])}


@register
class CrossEntropyGrad(Loss):
    """d_logits (1, K) = softmax(logits) - onehot(label)."""

    name, symbol = "cross_entropy_grad", "vt_cross_entropy_grad"
    outputs = (tensor("d_logits"),)
    inplace = {"d_logits": "logits"}

    def infer(self, site: Site) -> dict[str, Type]:
        return {"d_logits": Type(site.shapes["logits"])}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        e = np.exp(inputs["logits"] - inputs["logits"].max())
        e /= e.sum()
        e[0, int(inputs["label"][0])] -= 1
        return {"d_logits": e}
