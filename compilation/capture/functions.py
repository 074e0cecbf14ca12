"""Activations, powers and sums, spelled out with the gradient that PyTorch gives them."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from compilation.capture.expansion import aten, choose, expansion, shape_of


@expansion("clamp")
def _clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    if isinstance(min, fx.Proxy) or isinstance(max, fx.Proxy):
        return None
    y = input
    if max is not None:
        y = choose(aten.gt.Scalar(input, max), max, y)
    if min is not None:
        y = choose(aten.lt.Scalar(input, min), min, y)
    return y


@expansion("clamp_min")
def _clamp_min(input: Any, min: Any) -> Any:
    return _clamp(input, min, None)


@expansion("clamp_max")
def _clamp_max(input: Any, max: Any) -> Any:
    return _clamp(input, None, max)


@expansion("hardtanh")
def _hardtanh(input: Any, min_val: Any, max_val: Any) -> Any:
    upper = choose(aten.ge.Scalar(input, max_val), max_val, input)
    return choose(aten.le.Scalar(input, min_val), min_val, upper)


@expansion("relu6")
def _relu6(input: Any) -> Any:
    return _hardtanh(input, 0.0, 6.0)


@expansion("hardsigmoid")
def _hardsigmoid(input: Any) -> Any:
    return aten.mul.Tensor(_relu6(aten.add.Tensor(input, 3.0)), 1.0 / 6.0)


@expansion("hardswish")
def _hardswish(input: Any) -> Any:
    return aten.mul.Tensor(input, _hardsigmoid(input))


@expansion("leaky_relu")
def _leaky_relu(input: Any, negative_slope: Any) -> Any:
    return choose(aten.gt.Scalar(input, 0.0), input, aten.mul.Tensor(input, float(negative_slope)))


@expansion("rrelu")
def _rrelu(input: Any, lower: Any, upper: Any, training: Any = False, generator: Any = None) -> Any:
    return None if training else _leaky_relu(input, (lower + upper) / 2.0)


@expansion("prelu")
def _prelu(input: Any, weight: Any) -> Any:
    rank = len(shape_of(input))
    w = aten.reshape.default(weight, [1, -1] + [1] * (rank - 2)) if rank > 1 else weight
    return choose(aten.gt.Scalar(input, 0.0), input, aten.mul.Tensor(input, w))


@expansion("elu")
def _elu(input: Any, alpha: Any, scale: Any = 1, input_scale: Any = 1) -> Any:
    positive = aten.gt.Scalar(input, 0.0)
    below = aten.mul.Tensor(choose(positive, 0.0, input), float(input_scale))     # exp of it cannot overflow
    low = aten.mul.Tensor(aten.sub.Tensor(aten.exp.default(below), 1.0), float(alpha))
    y = choose(positive, input, low)
    return y if scale == 1 else aten.mul.Tensor(y, float(scale))


@expansion("selu")
def _selu(input: Any) -> Any:
    return _elu(input, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@expansion("celu")
def _celu(input: Any, alpha: Any = 1.0) -> Any:
    return _elu(input, alpha, 1, 1.0 / alpha)


@expansion("softplus")
def _softplus(input: Any, beta: Any = 1, threshold: Any = 20) -> Any:
    """log(1 + e^z) = max(z, 0) + log(1 + e^-|z|): no overflow, no loss of small values; linear above the threshold."""
    z = input if beta == 1 else aten.mul.Tensor(input, float(beta))
    linear = aten.gt.Scalar(z, float(threshold))
    inner = choose(linear, 0.0, z)
    bent = aten.log.default(aten.add.Tensor(aten.exp.default(inner), 1.0))
    y = bent if beta == 1 else aten.mul.Tensor(bent, 1.0 / beta)
    return choose(linear, input, y)


@expansion("mish")
def _mish(input: Any) -> Any:
    return aten.mul.Tensor(input, aten.tanh.default(_softplus(input)))


@expansion("log_sigmoid")
def _log_sigmoid(input: Any) -> Any:
    return aten.neg.default(_softplus(aten.neg.default(input)))


@expansion("glu")
def _glu(input: Any, dim: Any = -1) -> Any:
    half = shape_of(input)[dim] // 2
    a, b = aten.slice.Tensor(input, dim, 0, half), aten.slice.Tensor(input, dim, half, 2 * half)
    return aten.mul.Tensor(a, aten.sigmoid.default(b))


# -- sums with a factor, which importers forget ----------------------------------------------------------------
def _scaled_sum(input: Any, other: Any, alpha: Any, plus: Any) -> Any:
    if alpha == 1:
        return None
    return plus(input, aten.mul.Tensor(other, alpha) if isinstance(other, fx.Proxy) else other * alpha)


@expansion("add")
def _add(input: Any, other: Any, alpha: Any = 1) -> Any:
    return _scaled_sum(input, other, alpha, aten.add.Tensor)


@expansion("sub")
def _sub(input: Any, other: Any, alpha: Any = 1) -> Any:
    return _scaled_sum(input, other, alpha, aten.sub.Tensor)


@expansion("rsub")
def _rsub(input: Any, other: Any, alpha: Any = 1) -> Any:
    taken = input if alpha == 1 else aten.mul.Tensor(input, alpha)
    return aten.add.Tensor(aten.neg.default(taken), other)


# -- powers and roots ----------------------------------------------------------------------------------------
@expansion("square")
def _square(input: Any) -> Any:
    return aten.mul.Tensor(input, input)


@expansion("rsqrt")
def _rsqrt(input: Any) -> Any:
    return aten.reciprocal.default(aten.sqrt.default(input))


@expansion("pow")
def _pow(input: Any, exponent: Any) -> Any:
    if isinstance(exponent, fx.Proxy) or not isinstance(input, fx.Proxy) or not float(2 * exponent).is_integer() \
            or not 0 < abs(exponent) <= 4:
        return None
    whole, half = divmod(abs(exponent), 1)
    factors = [input] * int(whole) + ([aten.sqrt.default(input)] if half else [])
    y = factors[0]
    for f in factors[1:]:
        y = aten.mul.Tensor(y, f)
    if exponent < 0:
        return aten.reciprocal.default(y)
    return aten.mul.Tensor(y, 1.0) if y is input else y


@expansion("var")
def _var(input: Any, dim: Any = None, correction: Any = None, keepdim: Any = False, unbiased: Any = True) -> Any:
    rank = len(shape_of(input))
    axes = [d % rank for d in (range(rank) if dim is None else [dim] if isinstance(dim, int) else dim)]
    n = math.prod(shape_of(input)[d] for d in axes)
    less = correction if correction is not None else (1 if unbiased else 0)
    centred = aten.sub.Tensor(input, aten.mean.dim(input, axes, True))
    total = aten.sum.dim_IntList(aten.mul.Tensor(centred, centred), axes, bool(keepdim))
    return aten.mul.Tensor(total, 1.0 / (n - less))


@expansion("std")
def _std(**arguments: Any) -> Any:
    return aten.sqrt.default(_var(**arguments))


@expansion("linalg_vector_norm")
def _vector_norm(input: Any, ord: Any = 2, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> Any:
    if ord != 2 or dtype is not None:
        return None
    axes = list(range(len(shape_of(input)))) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    return aten.sqrt.default(aten.sum.dim_IntList(aten.mul.Tensor(input, input), axes, bool(keepdim)))


@expansion("logsumexp")
def _logsumexp(input: Any, dim: Any, keepdim: Any = False) -> Any:
    """x - log_softmax(x) is the same number all along the axis."""
    if len(dim) != 1:
        return None
    return aten.mean.dim(aten.sub.Tensor(input, aten.log_softmax.int(input, dim[0])), list(dim), bool(keepdim))


@expansion("addcmul")
def _addcmul(input: Any, tensor1: Any, tensor2: Any, value: Any = 1) -> Any:
    product = aten.mul.Tensor(tensor1, tensor2)
    return aten.add.Tensor(input, product if value == 1 else aten.mul.Tensor(product, float(value)))
