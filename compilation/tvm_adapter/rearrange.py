"""Relax operations that only move elements, as functions on an array of source indices (see `values.View`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax


def shape_of(expr: Any) -> tuple[int, ...]:
    """The static shape of a Relax expression."""
    return tuple(int(v) for v in expr.ty.shape.values)


def _permute(index: np.ndarray, call: relax.Call) -> np.ndarray:
    axes = call.attrs.axes
    return index.transpose([int(a) for a in axes] if axes is not None else None)


def _split_sizes(call: relax.Call) -> list[int]:
    axis = int(call.attrs.axis)
    return [int(part.shape.values[axis]) for part in call.ty.fields]


def _split(index: np.ndarray, call: relax.Call) -> list[np.ndarray]:
    return np.split(index, np.cumsum(_split_sizes(call))[:-1], int(call.attrs.axis))


def _squeeze(index: np.ndarray, call: relax.Call) -> np.ndarray:
    axis = call.attrs.axis
    return index.squeeze(tuple(int(a) for a in axis) if axis is not None else None)


def _strided_slice(index: np.ndarray, call: relax.Call) -> np.ndarray:
    axes, begin, end = ([int(getattr(v, "value", v)) for v in a.fields] for a in call.args[1:4])
    stride = [int(getattr(v, "value", v)) for v in call.args[4].fields] if len(call.args) > 4 else [1] * len(axes)
    cut = [slice(None)] * index.ndim
    for a, b, e, s in zip(axes, begin, end, stride, strict=True):
        cut[a] = slice(b, min(e, index.shape[a]), s)
    return index[tuple(cut)]


def _take(index: np.ndarray, call: relax.Call) -> np.ndarray:
    return np.take(index, call.args[1].value.numpy(), axis=int(call.attrs.axis))


REARRANGEMENTS: dict[str, Callable[[np.ndarray, relax.Call], Any]] = {
    "reshape": lambda index, call: index.reshape(shape_of(call)),
    "flatten": lambda index, call: index.reshape(shape_of(call)),
    "expand_dims": lambda index, call: index.reshape(shape_of(call)),
    "squeeze": _squeeze,
    "permute_dims": _permute,
    "broadcast_to": lambda index, call: np.broadcast_to(index, shape_of(call)),
    "split": _split,
    "strided_slice": _strided_slice,
    "take": _take,
}


def spelled(call: relax.Call, source: Any, part: int | None) -> Any:
    """A rearrangement of the variable `source` in the operations that have a gradient: reshape, permute_dims,
    broadcast_to, strided_slice, take with a list. part: which result of a split is meant."""
    name, shape = call.op.name.removeprefix("relax."), shape_of(source)
    if name == "split":
        assert part is not None
        axis, sizes = int(call.attrs.axis), _split_sizes(call)
        begin = sum(sizes[:part])
        return relax.op.strided_slice(source, [axis], [begin], [begin + sizes[part]])
    if name == "take" and call.args[1].value.numpy().ndim == 0:
        axis = int(call.attrs.axis)
        at = int(call.args[1].value.numpy()) % shape[axis]
        return relax.op.reshape(relax.op.strided_slice(source, [axis], [at], [at + 1]), list(shape_of(call)))
    if name in ("squeeze", "expand_dims", "flatten"):
        return relax.op.reshape(source, list(shape_of(call)))
    return relax.Call(call.op, [source, *call.args[1:]], call.attrs)
