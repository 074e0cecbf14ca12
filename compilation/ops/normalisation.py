"""Layer normalisation and its gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import check_eps, tensor, vector
from compilation.types import SUM, Type


@register
class LayerNorm(Op):
    """y (N, D) = normalised rows of x, times gamma, plus beta."""

    name, symbol, source, gradient = "layer_norm", "vt_layer_norm", "vt_layer_norm.c", "layer_norm_grad"
    inputs, outputs = (tensor("x"), vector("gamma", True), vector("beta", True)), (tensor("y"),)
    indices, attrs = "x: n d, gamma: d, beta: d", {"eps": (float, 1e-6)}
    inplace, rowwise = {"y": "x"}, ("x",)

    def check(self, site: Site) -> None:
        check_eps(self.attr(site, "eps"))

    def infer(self, site: Site) -> dict[str, Type]:
        return {"y": Type(site.shapes["x"])}

    def dims(self, site: Site) -> dict[str, int]:
        return {"n": math.prod(site.shapes["x"][:-1]), "d": site.shapes["x"][-1]}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": ref.layer_norm(inputs["x"], inputs.get("gamma"), inputs.get("beta"), attrs["eps"])}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for n, d in ((5, 33), (1, 7), (3, 16)):
            x, gamma, beta = rng.normal(1, 2, (n, d)), rng.normal(1, 0.3, d), rng.normal(size=d)
            yield Sample({"x": x, "gamma": gamma, "beta": beta}, {"eps": 1e-6})
            yield Sample({"x": x}, {"eps": 1e-5})


@register
class LayerNormGrad(Op):
    """Gradients of layer_norm; statistics are computed again from x."""

    name, symbol, source = "layer_norm_grad", "vt_layer_norm_grad", "vt_layer_norm.c"
    inputs = (tensor("x"), vector("gamma", True), tensor("dy"))
    outputs = (tensor("d_x"), vector("d_gamma"), vector("d_beta"))
    indices, attrs = "x: n d, gamma: d, dy: n d", {"eps": (float, 1e-6)}
    inplace = {"d_x": "dy"}
    needed_for = {"gamma": ("d_x",)}

    def check(self, site: Site) -> None:
        check_eps(self.attr(site, "eps"))

    def infer(self, site: Site) -> dict[str, Type]:
        d = site.shapes["x"][-1:]
        return {"d_x": Type(site.shapes["x"]), "d_gamma": Type(d), "d_beta": Type(d)}

    def dims(self, site: Site) -> dict[str, int]:
        return {"n": math.prod(site.shapes["x"][:-1]), "d": site.shapes["x"][-1]}

    def scratch(self, site: Site) -> int:
        return SUM.of(site.shapes["x"][-1] * len(site.wants & {"d_gamma", "d_beta"}))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        dx, dgamma, dbeta = ref.layer_norm_grad(inputs["x"], inputs.get("gamma"), inputs["dy"], attrs["eps"])
        return {"d_x": dx, "d_gamma": dgamma, "d_beta": dbeta}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for n, d in ((5, 33), (1, 7), (3, 16)):
            made = {"x": rng.normal(1, 2, (n, d)), "gamma": rng.normal(1, 0.3, d), "dy": rng.normal(size=(n, d))}
            yield Sample(made, {"eps": 1e-6}, ("d_x", "d_gamma", "d_beta"))
            yield Sample(made, {"eps": 1e-6}, ("d_gamma",))
            yield Sample({k: made[k] for k in ("x", "dy")}, {"eps": 1e-5}, ("d_x", "d_beta"))
