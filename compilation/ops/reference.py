"""Float64 NumPy mathematics of the operations: small functions that the definitions compose."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
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


def _heads(qkv: Array, heads: int) -> tuple[Array, Array, Array]:
    """q, k, v as (heads, n, d)."""
    n, width = qkv.shape[0], qkv.shape[1] // 3
    q, k, v = qkv.reshape(n, 3, heads, width // heads).transpose(1, 2, 0, 3)
    return q, k, v


def _softmax(s: Array) -> Array:
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(qkv: Array, heads: int) -> Array:
    q, k, v = _heads(qkv, heads)
    p = _softmax(q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]))
    return (p @ v).transpose(1, 0, 2).reshape(qkv.shape[0], -1)


def attention_grad(qkv: Array, dy: Array, heads: int) -> Array:
    q, k, v = _heads(qkv, heads)
    n, d = q.shape[1], q.shape[2]
    p = _softmax(q @ k.transpose(0, 2, 1) / math.sqrt(d))
    g = dy.reshape(n, heads, d).transpose(1, 0, 2)
    dp = g @ v.transpose(0, 2, 1)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / math.sqrt(d)
    parts = np.stack([ds @ k, ds.transpose(0, 2, 1) @ q, p.transpose(0, 2, 1) @ g])
    return parts.transpose(2, 0, 1, 3).reshape(n, -1)


def gram(x: Array, a: Array, b: Array) -> Array:
    return x @ (x.T @ a) @ b / x.shape[1]


def gram_grad(x: Array, a: Array, b: Array, dy: Array) -> tuple[Array, Array, Array]:
    """d_x, d_a, d_b."""
    u, g = x.T @ a, dy / x.shape[1]
    e = g @ b.T
    du = x.T @ e
    return e @ u.T + a @ du.T, x @ du, (x @ u).T @ g


def cross_entropy(logits: Array, label: int) -> float:
    m = float(logits.max())
    return float(np.log(np.exp(logits - m).sum()) + m - logits.reshape(-1)[label])


def patches(image: Array, scale: Array, shift: Array, p: int) -> Array:
    """Normalised image (H, W, C) -> (patches, C * p * p), features in the order channel, y, x."""
    h, w, c = image.shape
    x = image * scale + shift
    return x.reshape(h // p, p, w // p, p, c).transpose(0, 2, 4, 1, 3).reshape(-1, c * p * p)
