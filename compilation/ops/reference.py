"""Float64 NumPy mathematics of the operations: small functions that the definitions compose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arrays = Mapping[str, Array]
_erf = np.vectorize(math.erf, otypes=[float])


def layer_norm(x: Array, gamma: Array | None, beta: Array | None, eps: float) -> Array:
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    if gamma is not None:
        y = y * gamma
    return y if beta is None else y + beta


def layer_norm_grad(x: Array, gamma: Array | None, dy: Array, eps: float) -> tuple[Array, Array, Array]:
    """d_x, d_gamma, d_beta."""
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + eps)
    xhat = (x - x.mean(-1, keepdims=True)) * rstd
    g = dy if gamma is None else dy * gamma
    dx = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    return dx, (dy * xhat).sum(0), dy.sum(0)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def activation(x: Array, act: str) -> Array:
    """act: "gelu", "gelu_tanh", "relu", "sigmoid", "silu", "tanh"."""
    return _ACTIVATIONS[act][0](x)


def activation_slope(x: Array, act: str) -> Array:
    return _ACTIVATIONS[act][1](x)


def _gelu_tanh_slope(x: Array) -> Array:
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)


_ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {      # value and slope
    "gelu": (lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
             lambda x: 0.5 * (1 + _erf(x / math.sqrt(2))) + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
    "gelu_tanh": (lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), _gelu_tanh_slope),
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(float)),
    "sigmoid": (sigmoid, lambda x: sigmoid(x) * (1 - sigmoid(x))),
    "silu": (lambda x: x * sigmoid(x), lambda x: sigmoid(x) * (1 + x * (1 - sigmoid(x)))),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
}


def split_heads(x: Array, heads: int) -> Array:
    """(n, heads * d) as (heads, n, d)."""
    return x.reshape(x.shape[0], heads, -1).transpose(1, 0, 2)


def join_heads(x: Array) -> Array:
    """(heads, n, d) as (n, heads * d)."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def _scores(i: Arrays, heads: int, scale: float) -> Array:
    """(heads, n, m). scale 0: 1 / sqrt(d)."""
    qh, kh = split_heads(i["q"], heads), split_heads(i["k"], heads)
    return (scale or qh.shape[-1] ** -0.5) * qh @ kh.transpose(0, 2, 1)


def attention(i: Arrays, heads: int, scale: float = 0.0) -> Array:
    """Of q, k, v, each (tokens, heads * features)."""
    s = _scores(i, heads, scale)
    e = np.exp(s - s.max(-1, keepdims=True))
    return join_heads(e / e.sum(-1, keepdims=True) @ split_heads(i["v"], heads))


def attention_statistics(i: Arrays, heads: int, scale: float = 0.0) -> dict[str, Array]:
    """high, total, delta, (n, heads) each: of the scores s, the maximum, the sum of e^(s - high), and the sum of
    e^(s - high) times the value's product with dy."""
    s = _scores(i, heads, scale)
    e = np.exp(s - s.max(-1, keepdims=True))
    dp = split_heads(i["dy"], heads) @ split_heads(i["v"], heads).transpose(0, 2, 1)
    return {"high": s.max(-1).T, "total": e.sum(-1).T, "delta": (e * dp).sum(-1).T}


def attention_grad(i: Arrays, heads: int, scale: float = 0.0) -> dict[str, Array]:
    """d_q, d_k, d_v, and y again, of q, k, v, dy and their statistics: what the inputs suffice for."""
    qh, kh = split_heads(i["q"], heads), split_heads(i["k"], heads)
    share = i["total"].T[..., None]
    p = np.exp(_scores(i, heads, scale) - i["high"].T[..., None]) / share
    made = {"y": join_heads(p @ split_heads(i["v"], heads))} if "v" in i else {}
    if "dy" not in i:
        return made
    g = split_heads(i["dy"], heads)
    made["d_v"] = join_heads(p.transpose(0, 2, 1) @ g)
    if "v" in i and "delta" in i:
        ds = p * (g @ split_heads(i["v"], heads).transpose(0, 2, 1) - i["delta"].T[..., None] / share)
        ds = (scale or qh.shape[-1] ** -0.5) * ds
        made |= {"d_q": join_heads(ds @ kh), "d_k": join_heads(ds.transpose(0, 2, 1) @ qh)}
    return made


def cross_entropy(logits: Array, label: int) -> float:
    m = float(logits.max())
    return float(np.log(np.exp(logits - m).sum()) + m - logits.reshape(-1)[label])


def patches(image: Array, scale: Array, shift: Array, p: int) -> Array:
    """Normalised image (H, W, C) -> (patches, C * p * p), features in the order channel, y, x."""
    h, w, c = image.shape
    x = image * scale + shift
    return x.reshape(h // p, p, w // p, p, c).transpose(0, 2, 4, 1, 3).reshape(-1, c * p * p)
