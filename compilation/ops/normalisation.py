"""Layer normalisation and its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import COUNT, check_eps, tile, vector
from compilation.types import SUM


def pieces(x: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    """(N, H * D) as the (N * H, D) rows that are normalised."""
    return x.reshape(-1, x.shape[-1] // attrs.get("heads", 1))


@register
class LayerNorm(Op):
    """y (N, H * D) = the H pieces of each row of x, each normalised by itself, times gamma, plus beta."""

    name, symbol, source, gradient = "layer_norm", "vt_layer_norm", "vt_layer_norm.c", "layer_norm_grad"
    inputs, outputs = (tile("x"), vector("gamma", True), vector("beta", True)), (tile("y"),)
    indices, layout = "x: n h*[d], gamma: [d], beta: [d] -> y: n h*[d]", {"x": "rows"}
    attrs, legal, sized = {"eps": (float, 1e-6), "heads": (int, 1)}, {"heads": COUNT}, {"h": "heads"}
    inplace, shifts, effort = {"y": "x"}, ("beta",), 5

    def check(self, site: Site) -> None:
        check_eps(self.attr(site, "eps"))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        x = pieces(inputs["x"], attrs)
        y = ref.layer_norm(x, inputs.get("gamma"), inputs.get("beta"), attrs["eps"])
        return {"y": y.reshape(inputs["x"].shape)}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for n, d in ((5, 33), (1, 7), (3, 16)):
            x, gamma, beta = rng.normal(1, 2, (n, d)), rng.normal(1, 0.3, d), rng.normal(size=d)
            yield Sample({"x": x, "gamma": gamma, "beta": beta}, {"eps": 1e-6})
            yield Sample({"x": x}, {"eps": 1e-5})
            yield Sample({"x": np.tile(x, 3) + rng.normal(size=(n, 3 * d)), "gamma": gamma, "beta": beta}, {"heads": 3})


@register
class LayerNormGrad(Op):
    """Gradients of layer_norm; statistics are computed again from x."""

    name, symbol, source = "layer_norm_grad", "vt_layer_norm_grad", "vt_layer_norm.c"
    inputs = (tile("x"), vector("gamma", True), tile("dy"))
    outputs = (tile("d_x"), vector("d_gamma"), vector("d_beta"))
    indices = "x: n h*[d], gamma: [d], dy: n h*[d] -> d_x: n h*[d], d_gamma: [d], d_beta: [d]"
    adds, layout = ("d_gamma", "d_beta"), {"x": "rows", "dy": "rows", "d_x": "rows"}
    linear = {"dy": ("d_x", "d_gamma", "d_beta")}
    attrs, legal, sized = {"eps": (float, 1e-6), "heads": (int, 1)}, {"heads": COUNT}, {"h": "heads"}
    inplace, effort = {"d_x": "dy"}, 10
    needed_for = {"x": ("d_x", "d_gamma"), "gamma": ("d_x",)}

    def check(self, site: Site) -> None:
        check_eps(self.attr(site, "eps"))

    def scratch(self, site: Site) -> int:
        return SUM.of(self.bind(site)["d"] * len(site.wants & {"d_gamma", "d_beta"}))

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        dy = pieces(inputs["dy"], attrs)
        if "x" not in inputs:
            return {"d_beta": dy.sum(0)}
        dx, dgamma, dbeta = ref.layer_norm_grad(pieces(inputs["x"], attrs), inputs.get("gamma"), dy, attrs["eps"])
        return {"d_x": dx.reshape(inputs["x"].shape), "d_gamma": dgamma, "d_beta": dbeta}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for n, d in ((5, 33), (1, 7), (3, 16)):
            made = {"x": rng.normal(1, 2, (n, d)), "gamma": rng.normal(1, 0.3, d), "dy": rng.normal(size=(n, d))}
            yield Sample(made, {"eps": 1e-6}, ("d_x", "d_gamma", "d_beta"))
            yield Sample(made, {"eps": 1e-6}, ("d_gamma",))
            yield Sample({k: made[k] for k in ("x", "dy")}, {"eps": 1e-5}, ("d_x", "d_beta"))
            yield Sample({"dy": made["dy"]}, {"eps": 1e-6}, ("d_beta",))
            x, dy = rng.normal(1, 2, (n, 3 * d)), rng.normal(size=(n, 3 * d))
            yield Sample({**made, "x": x, "dy": dy}, {"heads": 3}, ("d_x", "d_gamma", "d_beta"))
