"""Relax operations that only move elements, as functions on an array of source indices (see `values.View`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
from tvm import relax

from compilation.tvm_adapter.keep import relax_type
from compilation.tvm_adapter.values import View, view_of
from compilation.types import I32, Type


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


def moved(view: View, rearranged: Callable[[Any], Any], index: np.ndarray) -> View:
    """The view after a rearrangement, given as Relax writes it for a variable and as what it does to the source indices."""
    variable = relax.Var("x", relax_type(Type(view.shape)))
    return View(view.base, index, view.parameter, (rearranged(variable), view, None))


def reshaped(view: View, shape: tuple[int, ...]) -> View:
    """The same elements in the same order."""
    return moved(view, lambda x: relax.op.reshape(x, list(shape)), view.index.reshape(shape))


def _permuted(view: View, axes: tuple[int, ...]) -> View:
    return moved(view, lambda x: relax.op.permute_dims(x, list(axes)), view.index.transpose(axes))


def arrangement(tensor: str, shape: tuple[int, int], index: np.ndarray) -> View:
    """The elements of a whole (rows, features) tensor in the order of `index`: by a permutation of rows, groups of features
    and features where it is one."""
    whole, features = view_of(tensor, shape), index.shape[-1] if index.ndim else 1
    for group in {features, shape[1]}:
        if shape[1] % group:
            continue
        grouped = reshaped(whole, (shape[0], shape[1] // group, group))
        for axes in permutations(range(3)):
            if (grouped.index.transpose(axes).reshape(-1) == index.reshape(-1)).all():
                return reshaped(_permuted(grouped, axes), index.shape)
    flat = reshaped(whole, (math.prod(shape),))
    chosen = relax.const(index.reshape(-1).astype(I32.numpy))
    return reshaped(moved(flat, lambda x: relax.op.take(x, chosen, 0), index.reshape(-1)), index.shape)
