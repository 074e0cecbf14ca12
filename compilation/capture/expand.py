"""Operations spelled out in simpler ones, whose import, gradient and C form are known to be right.

Each expansion is PyTorch's own definition of the operation, in the names of its schema, with the gradient that PyTorch
gives it (a clamp passes the gradient at its limits, a hard tanh does not). The witness compares the result with the
module. An operation without an expansion that the importer does not know either is decomposed by PyTorch itself.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from compilation.capture.regions import operation

aten = torch.ops.aten
NOT_SEEN = -1e30            # added to the score of a masked key: exp gives exactly 0
Expansion = Callable[..., Any]
EXPANSIONS: dict[str, Expansion] = {}
# What the importer knows as operations that have no gradient there: PyTorch's own decomposition instead.
DECOMPOSED = {"stack", "outer", "pixel_shuffle", "pixel_unshuffle", "einsum", "lstm", "gru", "rnn_tanh", "rnn_relu"}


def expand(exported: Any, importable: Collection[str] = ()) -> None:
    """Replace, in place, every node that has an expansion, and every node that is not `importable` where PyTorch can
    decompose it. importable: operation names with overload as the importer knows them ("add.Tensor").

    What neither knows is left for the importer to refuse by name.
    """
    graph = exported.graph
    work = list(graph.nodes)
    while work:
        node = work.pop()
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = operation(node).removeprefix("aten::")
        made = _spell_out(graph, node, EXPANSIONS[name]) if name in EXPANSIONS else []
        foreign = bool(importable) and node.target.__name__ not in importable
        if not made and (foreign or name in DECOMPOSED) and node.target.namespace == "aten":
            made = _decompose(graph, node)
        work += made
    graph.eliminate_dead_code()
    exported.graph_module.recompile()


# -- how a node is replaced ------------------------------------------------------------------------------
class _Tracer(fx.proxy.GraphAppendingTracer):
    """Appends operations to a graph, each with its value's shape and the module path of the node it replaces."""

    def __init__(self, graph: fx.Graph, origin: fx.Node) -> None:
        super().__init__(graph)
        self.origin, self.made = origin, []  # type: ignore[var-annotated]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.annotate(node)
        return node

    def annotate(self, node: fx.Node) -> None:
        values = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        node.meta |= {k: v for k, v in self.origin.meta.items() if k == "nn_module_stack"}
        node.meta["val"] = node.target(*values[0], **values[1])  # type: ignore[operator]
        self.made.append(node)


def _spell_out(graph: fx.Graph, node: fx.Node, expansion: Expansion) -> list[fx.Node]:
    """The nodes that replace `node`; none when the expansion leaves it as it is."""
    with graph.inserting_before(node):
        tracer = _Tracer(graph, node)
        arguments = {a.name: a.default_value for a in node.target._schema.arguments}  # type: ignore[union-attr]
        names = list(arguments)
        arguments |= dict(zip(names, node.args, strict=False)) | node.kwargs
        proxied = {k: fx.map_arg(v, lambda n: fx.Proxy(n, tracer)) for k, v in arguments.items()}
        result = expansion(**{"input" if k == "self" else k: v for k, v in proxied.items()})
    if result is None:
        return []
    node.replace_all_uses_with(result.node)
    graph.erase_node(node)
    return tracer.made


def _decompose(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """PyTorch's own decomposition of an operation into plain ones, if it has one that applies."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    rule = torch._decomp.decomposition_table.get(target) or (target.decompose if target.has_kernel_for_dispatch_key(
        torch._C.DispatchKey.CompositeImplicitAutograd) else None)
    inputs = list(node.all_input_nodes)
    if rule is None:
        return []

    def call(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
        return rule(*args, **kwargs)

    try:
        with torch.backends.mkldnn.flags(enabled=False):     # its layers are black boxes
            body = make_fx(call)(*(n.meta["val"] for n in inputs)).graph
    except Exception:  # a decomposition that does not apply to these arguments: the importer names the operation
        return []
    if not all(n.op in ("placeholder", "output") or _plain(n.target) for n in body.nodes):
        return []
    values: dict[fx.Node, Any] = dict(zip([n for n in body.nodes if n.op == "placeholder"], inputs, strict=True))
    tracer = _Tracer(graph, node)
    with graph.inserting_before(node):
        for n in body.nodes:
            if n.op == "call_function":
                values[n] = graph.node_copy(n, values.__getitem__)
                tracer.annotate(values[n])
    result = fx.map_arg(next(n for n in body.nodes if n.op == "output").args[0], values.__getitem__)
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    for user in list(node.users):            # several results: each is picked by its number
        user.replace_all_uses_with(result[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)
    return [n for n in tracer.made if n.target is not target]


def _plain(target: Any) -> bool:
    """Something that makes a value of values: no write, none of the primitives that PyTorch cannot differentiate."""
    return target is operator.getitem or (isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"
                                          and not target._schema.is_mutable)


def _shape(x: fx.Proxy) -> list[int]:
    return list(x.node.meta["val"].shape)


def _expansion(name: str) -> Callable[[Expansion], Expansion]:
    def keep(function: Expansion) -> Expansion:
        EXPANSIONS[name] = function
        return function
    return keep


# -- activations -------------------------------------------------------------------------------------------
def _choose(condition: Any, yes: Any, no: Any) -> Any:
    """where(); numbers become constants of the other branch's shape."""
    like = next(v for v in (yes, no) if isinstance(v, fx.Proxy))
    full = [v if isinstance(v, fx.Proxy) else aten.full_like.default(like, float(v)) for v in (yes, no)]
    return aten.where.self(condition, *full)


@_expansion("clamp")
def _clamp(input: Any, min: Any = None, max: Any = None) -> Any:
    if isinstance(min, fx.Proxy) or isinstance(max, fx.Proxy):
        return None
    y = input
    if max is not None:
        y = _choose(aten.gt.Scalar(input, max), max, y)
    if min is not None:
        y = _choose(aten.lt.Scalar(input, min), min, y)
    return y


@_expansion("clamp_min")
def _clamp_min(input: Any, min: Any) -> Any:
    return _clamp(input, min, None)


@_expansion("clamp_max")
def _clamp_max(input: Any, max: Any) -> Any:
    return _clamp(input, None, max)


@_expansion("hardtanh")
def _hardtanh(input: Any, min_val: Any, max_val: Any) -> Any:
    upper = _choose(aten.ge.Scalar(input, max_val), max_val, input)
    return _choose(aten.le.Scalar(input, min_val), min_val, upper)


@_expansion("relu6")
def _relu6(input: Any) -> Any:
    return _hardtanh(input, 0.0, 6.0)


@_expansion("hardsigmoid")
def _hardsigmoid(input: Any) -> Any:
    return aten.mul.Tensor(_relu6(aten.add.Tensor(input, 3.0)), 1.0 / 6.0)


@_expansion("hardswish")
def _hardswish(input: Any) -> Any:
    return aten.mul.Tensor(input, _hardsigmoid(input))


@_expansion("leaky_relu")
def _leaky_relu(input: Any, negative_slope: Any) -> Any:
    return _choose(aten.gt.Scalar(input, 0.0), input, aten.mul.Tensor(input, float(negative_slope)))


@_expansion("rrelu")
def _rrelu(input: Any, lower: Any, upper: Any, training: Any = False, generator: Any = None) -> Any:
    return None if training else _leaky_relu(input, (lower + upper) / 2.0)


@_expansion("prelu")
def _prelu(input: Any, weight: Any) -> Any:
    rank = len(_shape(input))
    w = aten.reshape.default(weight, [1, -1] + [1] * (rank - 2)) if rank > 1 else weight
    return _choose(aten.gt.Scalar(input, 0.0), input, aten.mul.Tensor(input, w))


@_expansion("elu")
def _elu(input: Any, alpha: Any, scale: Any = 1, input_scale: Any = 1) -> Any:
    positive = aten.gt.Scalar(input, 0.0)
    below = aten.mul.Tensor(_choose(positive, 0.0, input), float(input_scale))     # exp of it cannot overflow
    low = aten.mul.Tensor(aten.sub.Tensor(aten.exp.default(below), 1.0), float(alpha))
    y = _choose(positive, input, low)
    return y if scale == 1 else aten.mul.Tensor(y, float(scale))


@_expansion("selu")
def _selu(input: Any) -> Any:
    return _elu(input, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@_expansion("celu")
def _celu(input: Any, alpha: Any = 1.0) -> Any:
    return _elu(input, alpha, 1, 1.0 / alpha)


@_expansion("softplus")
def _softplus(input: Any, beta: Any = 1, threshold: Any = 20) -> Any:
    """log(1 + e^z) = max(z, 0) + log(1 + e^-|z|): no overflow, no loss of small values; linear above the threshold."""
    z = input if beta == 1 else aten.mul.Tensor(input, float(beta))
    linear = aten.gt.Scalar(z, float(threshold))
    inner = _choose(linear, 0.0, z)
    bent = aten.log.default(aten.add.Tensor(aten.exp.default(inner), 1.0))
    y = bent if beta == 1 else aten.mul.Tensor(bent, 1.0 / beta)
    return _choose(linear, input, y)


@_expansion("mish")
def _mish(input: Any) -> Any:
    return aten.mul.Tensor(input, aten.tanh.default(_softplus(input)))


@_expansion("log_sigmoid")
def _log_sigmoid(input: Any) -> Any:
    return aten.neg.default(_softplus(aten.neg.default(input)))


@_expansion("glu")
def _glu(input: Any, dim: Any = -1) -> Any:
    half = _shape(input)[dim] // 2
    a, b = aten.slice.Tensor(input, dim, 0, half), aten.slice.Tensor(input, dim, half, 2 * half)
    return aten.mul.Tensor(a, aten.sigmoid.default(b))


# -- sums with a factor, which importers forget ----------------------------------------------------------------
def _scaled_sum(input: Any, other: Any, alpha: Any, plus: Any) -> Any:
    if alpha == 1:
        return None
    return plus(input, aten.mul.Tensor(other, alpha) if isinstance(other, fx.Proxy) else other * alpha)


@_expansion("add")
def _add(input: Any, other: Any, alpha: Any = 1) -> Any:
    return _scaled_sum(input, other, alpha, aten.add.Tensor)


@_expansion("sub")
def _sub(input: Any, other: Any, alpha: Any = 1) -> Any:
    return _scaled_sum(input, other, alpha, aten.sub.Tensor)


@_expansion("rsub")
def _rsub(input: Any, other: Any, alpha: Any = 1) -> Any:
    taken = input if alpha == 1 else aten.mul.Tensor(input, alpha)
    return aten.add.Tensor(aten.neg.default(taken), other)


# -- powers and roots ----------------------------------------------------------------------------------------
@_expansion("square")
def _square(input: Any) -> Any:
    return aten.mul.Tensor(input, input)


@_expansion("rsqrt")
def _rsqrt(input: Any) -> Any:
    return aten.reciprocal.default(aten.sqrt.default(input))


@_expansion("pow")
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


@_expansion("var")
def _var(input: Any, dim: Any = None, correction: Any = None, keepdim: Any = False, unbiased: Any = True) -> Any:
    rank = len(_shape(input))
    axes = [d % rank for d in (range(rank) if dim is None else [dim] if isinstance(dim, int) else dim)]
    n = math.prod(_shape(input)[d] for d in axes)
    less = correction if correction is not None else (1 if unbiased else 0)
    centred = aten.sub.Tensor(input, aten.mean.dim(input, axes, True))
    total = aten.sum.dim_IntList(aten.mul.Tensor(centred, centred), axes, bool(keepdim))
    return aten.mul.Tensor(total, 1.0 / (n - less))


@_expansion("std")
def _std(**arguments: Any) -> Any:
    return aten.sqrt.default(_var(**arguments))


@_expansion("linalg_vector_norm")
def _vector_norm(input: Any, ord: Any = 2, dim: Any = None, keepdim: Any = False, dtype: Any = None) -> Any:
    if ord != 2 or dtype is not None:
        return None
    axes = list(range(len(_shape(input)))) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    return aten.sqrt.default(aten.sum.dim_IntList(aten.mul.Tensor(input, input), axes, bool(keepdim)))


@_expansion("logsumexp")
def _logsumexp(input: Any, dim: Any, keepdim: Any = False) -> Any:
    """x - log_softmax(x) is the same number all along the axis."""
    if len(dim) != 1:
        return None
    return aten.mean.dim(aten.sub.Tensor(input, aten.log_softmax.int(input, dim[0])), list(dim), bool(keepdim))


@_expansion("addcmul")
def _addcmul(input: Any, tensor1: Any, tensor2: Any, value: Any = 1) -> Any:
    product = aten.mul.Tensor(tensor1, tensor2)
    return aten.add.Tensor(input, product if value == 1 else aten.mul.Tensor(product, float(value)))


# -- normalisation -------------------------------------------------------------------------------------------
def _affine(x: Any, weight: Any, bias: Any, shape: list[int] | None = None) -> Any:
    for operator_, p in ((aten.mul.Tensor, weight), (aten.add.Tensor, bias)):
        if p is not None:
            x = operator_(x, p if shape is None else aten.reshape.default(p, shape))
    return x


def _standardise(x: Any, axes: list[int], eps: float) -> Any:
    centred = aten.sub.Tensor(x, aten.mean.dim(x, axes, True))
    variance = aten.mean.dim(aten.mul.Tensor(centred, centred), axes, True)
    return aten.div.Tensor(centred, aten.sqrt.default(aten.add.Tensor(variance, float(eps))))


@_expansion("batch_norm")
def _batch_norm(input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: Any, momentum: Any,
                eps: Any, cudnn_enabled: Any) -> Any:
    shape = [1, -1] + [1] * (len(_shape(input)) - 2)
    centred = aten.sub.Tensor(input, aten.reshape.default(running_mean, shape))
    deviation = aten.sqrt.default(aten.add.Tensor(running_var, float(eps)))
    return _affine(aten.div.Tensor(centred, aten.reshape.default(deviation, shape)), weight, bias, shape)


@_expansion("group_norm")
def _group_norm(input: Any, num_groups: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5,
                cudnn_enabled: Any = True) -> Any:
    shape = _shape(input)
    grouped = aten.reshape.default(input, [shape[0], num_groups, -1])
    y = aten.reshape.default(_standardise(grouped, [2], eps), shape)
    return _affine(y, weight, bias, [1, -1] + [1] * (len(shape) - 2))


@_expansion("instance_norm")
def _instance_norm(input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, use_input_stats: Any,
                   momentum: Any, eps: Any, cudnn_enabled: Any) -> Any:
    if not use_input_stats:
        return _batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps, cudnn_enabled)
    return _group_norm(input, _shape(input)[1], weight, bias, eps)


@_expansion("layer_norm")
def _layer_norm(input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5,
                cudnn_enable: Any = True) -> Any:
    axes = len(normalized_shape)
    if axes == 1:                            # the registry's own; the importer wants both parameters
        if weight is not None and bias is not None:
            return None
        weight = aten.new_ones.default(input, list(normalized_shape)) if weight is None else weight
        bias = aten.new_zeros.default(input, list(normalized_shape)) if bias is None else bias
        return aten.layer_norm.default(input, list(normalized_shape), weight, bias, eps)
    return _affine(_standardise(input, list(range(-axes, 0)), eps), weight, bias)


@_expansion("rms_norm")
def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Any:
    axes = list(range(-len(normalized_shape), 0))
    mean = aten.mean.dim(aten.mul.Tensor(input, input), axes, True)
    small = torch.finfo(torch.float32).eps if eps is None else float(eps)
    return _affine(aten.div.Tensor(input, aten.sqrt.default(aten.add.Tensor(mean, small))), weight, None)


# -- attention -----------------------------------------------------------------------------------------------
@_expansion("scaled_dot_product_attention")
def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: Any = 0.0, is_causal: Any = False,
               scale: Any = None, enable_gqa: Any = False) -> Any:
    shape, keys = _shape(query), _shape(key)
    usual = scale is None or math.isclose(scale, shape[-1] ** -0.5, rel_tol=1e-9)
    if len(shape) == 4 and usual and attn_mask is None and not is_causal and not enable_gqa \
            and shape == keys == _shape(value):
        return None if scale is None else aten.scaled_dot_product_attention.default(query, key, value)
    if enable_gqa and shape[-3] != keys[-3]:
        key, value = (_repeat_heads(x, shape[-3] // keys[-3]) for x in (key, value))
    scaled = aten.mul.Tensor(query, shape[-1] ** -0.5 if scale is None else float(scale))
    scores = aten.matmul.default(scaled, aten.transpose.int(key, -2, -1))
    if is_causal:
        hidden = aten.new_full.default(scores, [shape[-2], keys[-2]], NOT_SEEN)
        scores = aten.add.Tensor(scores, aten.triu.default(hidden, 1))
    if attn_mask is not None:
        if attn_mask.node.meta["val"].dtype == torch.bool:
            scores = _choose(attn_mask, scores, NOT_SEEN)
        else:
            scores = aten.add.Tensor(scores, attn_mask)
    return aten.matmul.default(aten.softmax.int(scores, -1), value)


def _repeat_heads(x: Any, times: int) -> Any:
    *lead, heads, n, d = _shape(x)
    spread = aten.expand.default(aten.unsqueeze.default(x, -3), [*lead, heads, times, n, d])
    return aten.reshape.default(spread, [*lead, heads * times, n, d])


# -- writes into a part, which arrive here as new values ----------------------------------------------------------
@_expansion("copy")
def _copy(input: Any, src: Any, non_blocking: Any = False) -> Any:
    return aten.expand.default(src, _shape(input))


@_expansion("slice_scatter")
def _slice_scatter(input: Any, src: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1) -> Any:
    size = _shape(input)[dim]
    first, last, _ = slice(start, end).indices(size)
    if step != 1:
        return None
    parts = [aten.slice.Tensor(input, dim, 0, first)] * (first > 0) + [src] \
        + [aten.slice.Tensor(input, dim, last, size)] * (last < size)
    return aten.cat.default(parts, dim) if len(parts) > 1 else aten.expand.default(src, _shape(input))


@_expansion("select_scatter")
def _select_scatter(input: Any, src: Any, dim: Any, index: Any) -> Any:
    at = index % _shape(input)[dim]
    return _slice_scatter(input, aten.unsqueeze.default(src, dim), dim, at, at + 1)


# -- one dimension is two with a height of one; pooling to a few values is pooling with a large window ----------
@_expansion("conv1d")
def _conv1d(input: Any, weight: Any, bias: Any = None, stride: Any = (1,), padding: Any = (0,), dilation: Any = (1,),
            groups: Any = 1) -> Any:
    x, w = (aten.unsqueeze.default(t, 2) for t in (input, weight))
    if isinstance(padding, str):
        return None
    y = aten.conv2d.default(x, w, bias, [1, *stride], [0, *padding], [1, *dilation], groups)
    return aten.squeeze.dim(y, 2)


@_expansion("max_pool2d")
def _max_pool2d(input: Any, kernel_size: Any, stride: Any = (), padding: Any = (0, 0), dilation: Any = (1, 1),
                ceil_mode: Any = False) -> Any:
    """The largest of the window's positions, each a slice of the padded image with the stride as its step."""
    (kh, kw), (ph, pw), (dh, dw) = (_pair(v) for v in (kernel_size, padding, dilation))
    sh, sw = _pair(stride or kernel_size)
    *_, h, w = _shape(input)
    rows, cols = (h + 2 * ph - dh * (kh - 1) - 1) // sh + 1, (w + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    if ceil_mode and ((h + 2 * ph - dh * (kh - 1) - 1) % sh or (w + 2 * pw - dw * (kw - 1) - 1) % sw):
        return None
    if ph or pw:
        input = aten.constant_pad_nd.default(input, [pw, pw, ph, ph], NOT_SEEN)
    y = None
    for i in range(kh):
        band = aten.slice.Tensor(input, -2, i * dh, i * dh + (rows - 1) * sh + 1, sh)
        for j in range(kw):
            cut = aten.slice.Tensor(band, -1, j * dw, j * dw + (cols - 1) * sw + 1, sw)
            y = cut if y is None else aten.maximum.default(y, cut)
    return aten.mul.Tensor(y, 1.0) if kh == kw == 1 else y


def _pair(value: Any) -> tuple[int, int]:
    a, *b = value if isinstance(value, list | tuple) else (value,)
    return int(a), int(b[0] if b else a)


@_expansion("max_pool1d")
def _max_pool1d(input: Any, kernel_size: Any, stride: Any = (), padding: Any = (0,), dilation: Any = (1,),
                ceil_mode: Any = False) -> Any:
    y = aten.max_pool2d.default(aten.unsqueeze.default(input, 2), [1, *kernel_size], [1, *(stride or kernel_size)],
                                [0, *padding], [1, *dilation], ceil_mode)
    return aten.squeeze.dim(y, 2)


@_expansion("upsample_nearest2d")
def _upsample_nearest2d(input: Any, output_size: Any = None, scale_factors: Any = None, **given: Any) -> Any:
    *lead, h, w = _shape(input)
    rows, cols = output_size or [int(n * f) for n, f in zip((h, w), scale_factors or (), strict=True)]
    if rows % h or cols % w:
        return None
    spread = aten.expand.default(aten.reshape.default(input, [*lead, h, 1, w, 1]), [*lead, h, rows // h, w, cols // w])
    return aten.reshape.default(spread, [*lead, rows, cols])


@_expansion("roll")
def _roll(input: Any, shifts: Any, dims: Any = ()) -> Any:
    if not dims:
        return aten.reshape.default(_roll(aten.reshape.default(input, [-1]), shifts, [0]), _shape(input))
    y, shape = input, _shape(input)
    for shift, dim in zip(shifts, dims, strict=True):
        cut = -shift % shape[dim]
        if cut:
            parts = [aten.slice.Tensor(y, dim, cut, shape[dim]), aten.slice.Tensor(y, dim, 0, cut)]
            y = aten.cat.default(parts, dim)
    return None if y is input else y


@_expansion("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(input: Any, output_size: Any) -> Any:
    *lead, h, w = _shape(input)
    rows, cols = (have if want is None else int(want) for have, want in zip((h, w), output_size, strict=True))
    if h % rows or w % cols:
        return None
    cells = aten.reshape.default(input, [*lead, rows, h // rows, cols, w // cols])
    return aten.mean.dim(cells, [-3, -1])


@_expansion("adaptive_avg_pool1d")
def _adaptive_avg_pool1d(input: Any, output_size: Any) -> Any:
    *lead, n = _shape(input)
    cells = int(output_size[0])
    return None if n % cells else aten.mean.dim(aten.reshape.default(input, [*lead, cells, n // cells]), [-1])
