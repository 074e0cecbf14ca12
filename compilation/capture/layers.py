"""Normalisations, attention, pooling and writes into a part, spelled out in simpler operations."""

from __future__ import annotations

import math
from typing import Any

import torch

from compilation.capture.expansion import NOT_SEEN, aten, choose, expansion, shape_of


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


@expansion("batch_norm")
def _batch_norm(input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: Any, momentum: Any,
                eps: Any, cudnn_enabled: Any) -> Any:
    shape = [1, -1] + [1] * (len(shape_of(input)) - 2)
    centred = aten.sub.Tensor(input, aten.reshape.default(running_mean, shape))
    deviation = aten.sqrt.default(aten.add.Tensor(running_var, float(eps)))
    return _affine(aten.div.Tensor(centred, aten.reshape.default(deviation, shape)), weight, bias, shape)


@expansion("group_norm")
def _group_norm(input: Any, num_groups: Any, weight: Any = None, bias: Any = None, eps: Any = 1e-5,
                cudnn_enabled: Any = True) -> Any:
    shape = shape_of(input)
    grouped = aten.reshape.default(input, [shape[0], num_groups, -1])
    y = aten.reshape.default(_standardise(grouped, [2], eps), shape)
    return _affine(y, weight, bias, [1, -1] + [1] * (len(shape) - 2))


@expansion("instance_norm")
def _instance_norm(input: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, use_input_stats: Any,
                   momentum: Any, eps: Any, cudnn_enabled: Any) -> Any:
    if not use_input_stats:
        return _batch_norm(input, weight, bias, running_mean, running_var, False, momentum, eps, cudnn_enabled)
    return _group_norm(input, shape_of(input)[1], weight, bias, eps)


@expansion("layer_norm")
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


@expansion("rms_norm")
def _rms_norm(input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Any:
    axes = list(range(-len(normalized_shape), 0))
    mean = aten.mean.dim(aten.mul.Tensor(input, input), axes, True)
    small = torch.finfo(torch.float32).eps if eps is None else float(eps)
    return _affine(aten.div.Tensor(input, aten.sqrt.default(aten.add.Tensor(mean, small))), weight, None)


# -- attention -----------------------------------------------------------------------------------------------
@expansion("scaled_dot_product_attention")
def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: Any = 0.0, is_causal: Any = False,
               scale: Any = None, enable_gqa: Any = False) -> Any:
    shape, keys = shape_of(query), shape_of(key)
    values = shape_of(value)
    fit = len(shape) == 4 and shape[:2] == keys[:2] == values[:2] and shape[3] == keys[3] and keys[2] == values[2]
    if fit and attn_mask is None and not is_causal and not enable_gqa:
        if scale is not None and not math.isclose(scale, shape[-1] ** -0.5, rel_tol=1e-9):
            query = aten.mul.Tensor(query, float(scale) * shape[-1] ** 0.5)
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
            scores = choose(attn_mask, scores, NOT_SEEN)
        else:
            scores = aten.add.Tensor(scores, attn_mask)
    return aten.matmul.default(aten.softmax.int(scores, -1), value)


def _repeat_heads(x: Any, times: int) -> Any:
    *lead, heads, n, d = shape_of(x)
    spread = aten.expand.default(aten.unsqueeze.default(x, -3), [*lead, heads, times, n, d])
    return aten.reshape.default(spread, [*lead, heads * times, n, d])


# -- writes into a part, which arrive here as new values ----------------------------------------------------------
@expansion("copy")
def _copy(input: Any, src: Any, non_blocking: Any = False) -> Any:
    return aten.expand.default(src, shape_of(input))


@expansion("slice_scatter")
def _slice_scatter(input: Any, src: Any, dim: Any = 0, start: Any = None, end: Any = None, step: Any = 1) -> Any:
    size = shape_of(input)[dim]
    first, last, _ = slice(start, end).indices(size)
    if step != 1:
        return None
    parts = [aten.slice.Tensor(input, dim, 0, first)] * (first > 0) + [src] \
        + [aten.slice.Tensor(input, dim, last, size)] * (last < size)
    return aten.cat.default(parts, dim) if len(parts) > 1 else aten.expand.default(src, shape_of(input))


@expansion("cat")
def _cat(tensors: Any, dim: Any = 0) -> Any:
    """Without the parts that have no elements."""
    kept = [t for t in tensors if 0 not in shape_of(t)]
    return None if len(kept) in (0, len(tensors)) else aten.cat.default(kept, dim)


@expansion("select_scatter")
def _select_scatter(input: Any, src: Any, dim: Any, index: Any) -> Any:
    at = index % shape_of(input)[dim]
    return _slice_scatter(input, aten.unsqueeze.default(src, dim), dim, at, at + 1)


# -- one dimension is two with a height of one; pooling to a few values is pooling with a large window ----------
@expansion("conv1d")
def _conv1d(input: Any, weight: Any, bias: Any = None, stride: Any = (1,), padding: Any = (0,), dilation: Any = (1,),
            groups: Any = 1) -> Any:
    x, w = (aten.unsqueeze.default(t, 2) for t in (input, weight))
    if isinstance(padding, str):
        return None
    y = aten.conv2d.default(x, w, bias, [1, *stride], [0, *padding], [1, *dilation], groups)
    return aten.squeeze.dim(y, 2)


@expansion("max_pool2d")
def _max_pool2d(input: Any, kernel_size: Any, stride: Any = (), padding: Any = (0, 0), dilation: Any = (1, 1),
                ceil_mode: Any = False) -> Any:
    """The largest of the window's positions, each a slice of the padded image with the stride as its step."""
    (kh, kw), (ph, pw), (dh, dw) = (_pair(v) for v in (kernel_size, padding, dilation))
    sh, sw = _pair(stride or kernel_size)
    *_, h, w = shape_of(input)
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


@expansion("max_pool1d")
def _max_pool1d(input: Any, kernel_size: Any, stride: Any = (), padding: Any = (0,), dilation: Any = (1,),
                ceil_mode: Any = False) -> Any:
    y = aten.max_pool2d.default(aten.unsqueeze.default(input, 2), [1, *kernel_size], [1, *(stride or kernel_size)],
                                [0, *padding], [1, *dilation], ceil_mode)
    return aten.squeeze.dim(y, 2)


@expansion("upsample_nearest2d")
def _upsample_nearest2d(input: Any, output_size: Any = None, scale_factors: Any = None, **given: Any) -> Any:
    *lead, h, w = shape_of(input)
    rows, cols = output_size or [int(n * f) for n, f in zip((h, w), scale_factors or (), strict=True)]
    if rows % h or cols % w:
        return None
    spread = aten.expand.default(aten.reshape.default(input, [*lead, h, 1, w, 1]), [*lead, h, rows // h, w, cols // w])
    return aten.reshape.default(spread, [*lead, rows, cols])


@expansion("roll")
def _roll(input: Any, shifts: Any, dims: Any = ()) -> Any:
    if not dims:
        return aten.reshape.default(_roll(aten.reshape.default(input, [-1]), shifts, [0]), shape_of(input))
    y, shape = input, shape_of(input)
    for shift, dim in zip(shifts, dims, strict=True):
        cut = -shift % shape[dim]
        if cut:
            parts = [aten.slice.Tensor(y, dim, cut, shape[dim]), aten.slice.Tensor(y, dim, 0, cut)]
            y = aten.cat.default(parts, dim)
    return None if y is input else y


@expansion("adaptive_avg_pool2d")
def _adaptive_avg_pool2d(input: Any, output_size: Any) -> Any:
    *lead, h, w = shape_of(input)
    rows, cols = (have if want is None else int(want) for have, want in zip((h, w), output_size, strict=True))
    if h % rows or w % cols:
        return None
    cells = aten.reshape.default(input, [*lead, rows, h // rows, cols, w // cols])
    return aten.mean.dim(cells, [-3, -1])


@expansion("adaptive_avg_pool1d")
def _adaptive_avg_pool1d(input: Any, output_size: Any) -> Any:
    *lead, n = shape_of(input)
    cells = int(output_size[0])
    return None if n % cells else aten.mean.dim(aten.reshape.default(input, [*lead, cells, n // cells]), [-1])
