"""Elementwise operations: activations, sums and products, layer scale, multiplication by a constant, a copy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import FLAG, tile, vector


class Elementwise(Op):
    """A function of equally shaped inputs of any rank, element by element, in place where storage allows."""

    source = "vt_elementwise.c"

    def _samples(self, rng: np.random.Generator, *attrs: dict[str, Any]) -> Iterator[Sample]:
        for a in attrs or ({},):
            for shape in ((5, 7), (1, 33)):
                yield Sample({s.name: rng.normal(0, 2, shape) for s in self.inputs}, dict(a), ("d_x",))

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        return self._samples(rng)


class WithAct(Elementwise):
    """Operations of an activation function; `act` names it in ops/reference.py."""

    act: ClassVar[str]
    effort = 10

    def act_of(self, attrs: dict[str, Any]) -> str:
        return self.act


class WithGelu(WithAct):
    attrs, legal = {"tanh": (int, 0)}, {"tanh": FLAG}

    def act_of(self, attrs: dict[str, Any]) -> str:
        return "gelu_tanh" if attrs.get("tanh") else "gelu"

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        return self._samples(rng, {"tanh": 0}, {"tanh": 1})


class Activation(WithAct):
    """y = act(x)."""

    inputs, outputs, indices = (tile("x"),), (tile("y"),), "x: *n c -> y: *n c"
    inplace = {"y": "x"}
    vanishes: ClassVar[tuple[tuple[str, ...], ...]] = (("x",),)     # of all but those that are not 0 at 0

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": ref.activation(inputs["x"], self.act_of(attrs))}


class ActivationGrad(WithAct):
    """d_x = dy * act'(x)."""

    inputs, outputs, indices = (tile("x"), tile("dy")), (tile("d_x"),), "x: *n c, dy: *n c -> d_x: *n c"
    inplace, linear = {"d_x": "dy"}, {"dy": ("d_x",)}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"d_x": inputs["dy"] * ref.activation_slope(inputs["x"], self.act_of(attrs))}


@register
class Gelu(WithGelu, Activation):
    """y = GELU(x), exact or by tanh."""

    name, symbol, gradient, effort = "gelu", "vt_gelu", "gelu_grad", 16


@register
class GeluGrad(WithGelu, ActivationGrad):
    """d_x = dy * GELU'(x)."""

    name, symbol, effort = "gelu_grad", "vt_gelu_grad", 25


@register
class Relu(Activation):
    """y = max(x, 0)."""

    name, symbol, gradient, act, relax, effort = "relu", "vt_relu", "relu_grad", "relu", "nn.relu", 0


@register
class ReluGrad(ActivationGrad):
    """d_x = dy where x > 0."""

    name, symbol, act, effort = "relu_grad", "vt_relu_grad", "relu", 0


@register
class Silu(Activation):
    """y = x / (1 + e^-x)."""

    name, symbol, gradient, act, relax = "silu", "vt_silu", "silu_grad", "silu", "nn.silu"


@register
class SiluGrad(ActivationGrad):
    """d_x = dy * SiLU'(x)."""

    name, symbol, act = "silu_grad", "vt_silu_grad", "silu"


@register
class Sigmoid(Activation):
    """y = 1 / (1 + e^-x)."""

    name, symbol, gradient, act, relax = "sigmoid", "vt_sigmoid", "sigmoid_grad", "sigmoid", "sigmoid"
    vanishes = ()


@register
class SigmoidGrad(ActivationGrad):
    """d_x = dy * y (1 - y) with y = sigmoid(x)."""

    name, symbol, act = "sigmoid_grad", "vt_sigmoid_grad", "sigmoid"


@register
class Tanh(Activation):
    """y = tanh(x)."""

    name, symbol, gradient, act, relax = "tanh", "vt_tanh", "tanh_grad", "tanh", "tanh"


@register
class TanhGrad(ActivationGrad):
    """d_x = dy * (1 - tanh(x)^2)."""

    name, symbol, act = "tanh_grad", "vt_tanh_grad", "tanh"


@register
class Copy(Elementwise):
    """y = x, in another place or with other strides, or added to what stands there."""

    name, symbol, adds = "copy", "vt_copy", ("y",)
    inputs, outputs, indices = (tile("x"),), (tile("y"),), "x: *n c -> y: *n c"
    vanishes, linear, shifts = (("x",),), {"x": ("y",)}, ("x",)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["x"]}


@register
class Add(Elementwise):
    """y = a + b. Its gradient is dy for both, so it needs no operation."""

    name, symbol = "add", "vt_add"
    inputs, outputs, indices = (tile("a"), tile("b")), (tile("y"),), "a: *n c, b: *n c -> y: *n c"
    inplace, vanishes, shifts = {"y": "a"}, (("a", "b"),), ("a", "b")

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["a"] + inputs["b"]}


@register
class Mul(Elementwise):
    """y = a * b."""

    name, symbol, gradient = "mul", "vt_mul", "mul_grad"
    inputs, outputs, indices = (tile("a"), tile("b")), (tile("y"),), "a: *n c, b: *n c -> y: *n c"
    inplace, vanishes = {"y": "a"}, (("a",), ("b",))
    linear = {"a": ("y",), "b": ("y",)}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["a"] * inputs["b"]}


@register
class MulGrad(Elementwise):
    """d_a = dy * b; d_b = dy * a."""

    name, symbol = "mul_grad", "vt_mul_grad"
    inputs, outputs = (tile("a"), tile("b"), tile("dy")), (tile("d_a"), tile("d_b"))
    indices = "a: *n c, b: *n c, dy: *n c -> d_a: *n c, d_b: *n c"
    needed_for, linear = {"a": ("d_b",), "b": ("d_a",)}, {"dy": ("d_a", "d_b")}

    def may_alias(self, site: Site) -> dict[str, str]:
        return {"d_a": "dy"} if "d_a" in site.wants else {"d_b": "dy"}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {f"d_{s}": inputs["dy"] * inputs[other] for s, other in (("a", "b"), ("b", "a")) if other in inputs}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for sample in self._samples(rng):
            for wants, unread in ((("d_a", "d_b"), ""), (("d_a",), "a"), (("d_b",), "b")):
                yield Sample({s: v for s, v in sample.inputs.items() if s != unread}, wants=wants)


@register
class MulConst(Elementwise):
    """y = value * x. Its gradient is itself, applied to dy."""

    name, symbol = "mul_const", "vt_mul_const"
    inputs, outputs, indices = (tile("x"),), (tile("y"),), "x: *n c -> y: *n c"
    attrs = {"value": (float, 1.0)}
    inplace, vanishes, linear, shifts = {"y": "x"}, (("x",),), {"x": ("y",)}, ("x",)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": attrs["value"] * inputs["x"]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        return self._samples(rng, {"value": -0.75})


@register
class Scale(Op):
    """y (N, C) = x * s, s (C,): layer scale."""

    name, symbol, source, gradient = "scale", "vt_scale", "vt_elementwise.c", "scale_grad"
    inputs, outputs, indices = (tile("x"), vector("s")), (tile("y"),), "x: n c, s: c -> y: n c"
    inplace, vanishes = {"y": "x"}, (("x",), ("s",))
    linear, shifts = {"x": ("y",), "s": ("y",)}, ("x",)

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        return {"y": inputs["x"] * inputs["s"]}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for n, d in ((5, 18), (1, 7)):
            yield Sample({"x": rng.normal(size=(n, d)), "s": rng.normal(size=d)})


@register
class ScaleGrad(Op):
    """d_x = dy * s; d_s = column sums of dy * x."""

    name, symbol, source = "scale_grad", "vt_scale_grad", "vt_elementwise.c"
    inputs = (tile("x", optional=True), vector("s"), tile("dy"))
    outputs = (tile("d_x"), vector("d_s"))
    indices, adds = "x: n c, s: c, dy: n c -> d_x: n c, d_s: c", ("d_s",)
    inplace, needed_for = {"d_x": "dy"}, {"x": ("d_s",), "s": ("d_x",)}
    linear = {"dy": ("d_x", "d_s")}

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        made = {}
        if "s" in inputs:
            made["d_x"] = inputs["dy"] * inputs["s"]
        if "x" in inputs:
            made["d_s"] = (inputs["dy"] * inputs["x"]).sum(0)
        return made

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        x, s, dy = rng.normal(size=(5, 18)), rng.normal(size=18), rng.normal(size=(5, 18))
        yield Sample({"x": x, "s": s, "dy": dy}, wants=("d_x", "d_s"))
        yield Sample({"x": x, "s": s, "dy": dy}, wants=("d_s",))
        yield Sample({"s": s, "dy": dy}, wants=("d_x",))
        yield Sample({"x": x, "dy": dy}, wants=("d_s",))
