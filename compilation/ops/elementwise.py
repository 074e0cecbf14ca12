"""Elementwise operations: activations, addition, layer scale, multiplication by a constant."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import FLAG, tensor, vector
from compilation.types import Type


class Elementwise(Op):
    """A function of equally shaped inputs, element by element, in place where storage allows."""

    source = "vt_elementwise.c"
    result = "y"
    indices = "x: *, a: *, b: *, dy: *"

    def infer(self, site: Site) -> dict[str, Type]:
        return {self.result: Type(site.shapes[self.inputs[0].name])}

    def dims(self, site: Site) -> dict[str, int]:
        return {"size": math.prod(site.shapes[self.inputs[0].name])}

    def _samples(self, rng: np.random.Generator, *attrs: dict[str, Any]) -> Iterator[Sample]:
        for a in attrs or ({},):
            for shape in ((5, 7), (1, 33)):
                yield Sample({s.name: rng.normal(0, 2, shape) for s in self.inputs}, dict(a), ("d_x",))


@register
class Gelu(Elementwise):
    """y = GELU(x), exact or by tanh."""

    name, symbol, gradient = "gelu", "vt_gelu", "gelu_grad"
    inputs, outputs = (tensor("x"),), (tensor("y"),)
    attrs, legal = {"tanh": (int, 0)}, {"tanh": FLAG}
    inplace, rowwise, vanishes = {"y": "x"}, ("x",), (("x",),)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": ref.activation(inputs["x"], 1 if attrs.get("tanh") else 0)}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        return self._samples(rng, {"tanh": 0}, {"tanh": 1})


@register
class GeluGrad(Elementwise):
    """d_x = dy * GELU'(x)."""

    name, symbol, result = "gelu_grad", "vt_gelu_grad", "d_x"
    inputs, outputs = (tensor("x"), tensor("dy")), (tensor("d_x"),)
    attrs, legal = {"tanh": (int, 0)}, {"tanh": FLAG}
    inplace = {"d_x": "dy"}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"d_x": inputs["dy"] * ref.activation_slope(inputs["x"], 1 if attrs.get("tanh") else 0)}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        return self._samples(rng, {"tanh": 0}, {"tanh": 1})


@register
class Relu(Elementwise):
    """y = max(x, 0)."""

    name, symbol, gradient = "relu", "vt_relu", "relu_grad"
    inputs, outputs = (tensor("x"),), (tensor("y"),)
    inplace, rowwise, vanishes = {"y": "x"}, ("x",), (("x",),)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": ref.activation(inputs["x"], 2)}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        return self._samples(rng)


@register
class ReluGrad(Elementwise):
    """d_x = dy where x > 0."""

    name, symbol, result = "relu_grad", "vt_relu_grad", "d_x"
    inputs, outputs = (tensor("x"), tensor("dy")), (tensor("d_x"),)
    inplace = {"d_x": "dy"}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"d_x": inputs["dy"] * ref.activation_slope(inputs["x"], 2)}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        return self._samples(rng)


@register
class Add(Elementwise):
    """y = a + b. Its gradient is dy for both, so it needs no operation."""

    name, symbol = "add", "vt_add"
    inputs, outputs = (tensor("a"), tensor("b")), (tensor("y"),)
    inplace, rowwise, vanishes = {"y": "a"}, ("a", "b"), (("a", "b"),)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["a"] + inputs["b"]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        return self._samples(rng)


@register
class MulConst(Elementwise):
    """y = value * x. Its gradient is itself, applied to dy."""

    name, symbol = "mul_const", "vt_mul_const"
    inputs, outputs = (tensor("x"),), (tensor("y"),)
    attrs = {"value": (float, 1.0)}
    inplace, rowwise, vanishes = {"y": "x"}, ("x",), (("x",),)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": attrs["value"] * inputs["x"]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        return self._samples(rng, {"value": -0.75})


@register
class Scale(Op):
    """y (N, D) = x * s, s (D,): layer scale."""

    name, symbol, source, gradient = "scale", "vt_scale", "vt_elementwise.c", "scale_grad"
    inputs, outputs = (tensor("x"), vector("s")), (tensor("y"),)
    indices = "x: n d, s: d"
    inplace, rowwise, vanishes = {"y": "x"}, ("x",), (("x",), ("s",))

    def infer(self, site: Site) -> dict[str, Type]:
        return {"y": Type(site.shapes["x"])}

    def dims(self, site: Site) -> dict[str, int]:
        return {"n": math.prod(site.shapes["x"][:-1]), "d": site.shapes["x"][-1]}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["x"] * inputs["s"]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for n, d in ((5, 18), (1, 7)):
            yield Sample({"x": rng.normal(size=(n, d)), "s": rng.normal(size=d)})


@register
class ScaleGrad(Op):
    """d_x = dy * s; d_s = column sums of dy * x. x is read for d_s only."""

    name, symbol, source = "scale_grad", "vt_scale_grad", "vt_elementwise.c"
    inputs = (tensor("x", optional=True), vector("s"), tensor("dy"))
    outputs = (tensor("d_x"), vector("d_s"))
    indices = "x: n d, s: d, dy: n d"
    inplace, needed_for = {"d_x": "dy"}, {"x": ("d_s",)}

    def infer(self, site: Site) -> dict[str, Type]:
        return {"d_x": Type(site.shapes["dy"]), "d_s": Type(site.shapes["s"])}

    def dims(self, site: Site) -> dict[str, int]:
        return {"n": math.prod(site.shapes["dy"][:-1]), "d": site.shapes["dy"][-1]}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        made = {"d_x": inputs["dy"] * inputs["s"]}
        if "x" in inputs:
            made["d_s"] = (inputs["dy"] * inputs["x"]).sum(0)
        return made

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        x, s, dy = rng.normal(size=(5, 18)), rng.normal(size=18), rng.normal(size=(5, 18))
        yield Sample({"x": x, "s": s, "dy": dy}, wants=("d_x", "d_s"))
        yield Sample({"x": x, "s": s, "dy": dy}, wants=("d_s",))
        yield Sample({"s": s, "dy": dy}, wants=("d_x",))
