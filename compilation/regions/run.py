"""Runs a nest on NumPy arrays in float64, call by call, with the operations' references: what a nest means.

Every tensor is a flat array that windows are cut from as the C cuts them. All of them start as NaN, so that what is read
before it is made shows in the result; with `one_scratch` the nest's own tensors stand in one array, at their offsets, so
that an offset or a lifetime that is wrong shows, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from compilation.errors import VerificationError
from compilation.ops import REGISTRY, Op
from compilation.ops.base import Arrays
from compilation.regions.loops import ROWS, Loop, Nest, Stored, TileCall, Window
from compilation.regions.windows import Place, Scope, Shape, call_extents, matrix_of, place, strip_of, whole_site
from compilation.types import F32, INDEX

Chosen = Mapping[str, tuple[str, Sequence[int]]]    # parameter slot of the region -> axis, the rows or columns trained


def run(nest: Nest, inputs: Arrays, outputs: Mapping[str, Shape], parts: Chosen | None = None, *,
        over: Mapping[str, str] | None = None, one_scratch: bool = False) -> Arrays:
    """The results by slot, and under `d_<slot>` the gradient of each parameter that the nest updates.

    inputs: the region's slots (float64, parameters whole); outputs: the shapes of its results. parts: of parameters trained
    in part; their gradients have the shape of that part. over: result -> the input in whose place
    it is made. An updated element of a parameter is NaN from then on.
    Raises VerificationError where a kernel's state was lost between two tiles.
    """
    return _Run(nest, inputs, outputs, parts or {}, over or {}, one_scratch).run()


class _Run:
    def __init__(self, nest: Nest, inputs: Arrays, outputs: Mapping[str, Shape], parts: Chosen,
                 over: Mapping[str, str], one: bool) -> None:
        self.nest, self.parts = nest, parts
        self.shapes: dict[str, Shape] = {**{n: v.shape for n, v in inputs.items()}, **outputs}
        self.flat = {n: v.astype(v.dtype if v.dtype == INDEX.numpy else np.float64).ravel() for n, v in inputs.items()}
        self.flat |= {n: self.flat[over[n]] if n in over else _nan(math.prod(s)) for n, s in outputs.items()}
        self.layouts: dict[str, str] = {}
        scratch = _nan(nest.scratch // F32.bytes)
        for s in nest.stored.values():
            self.shapes[s.name], self.layouts[s.name] = s.type.shape, s.layout
            self.flat[s.name] = self._storage(s, scratch if one else None)
        self.outputs = list(outputs)
        self.updated: Arrays = {}
        self.count = 0
        self.states: dict[tuple[object, ...], tuple[Arrays, Arrays]] = {}

    def _storage(self, s: Stored, scratch: np.ndarray | None) -> np.ndarray:
        if s.stands:
            return self.flat[s.stands]
        count = s.type.bytes // F32.bytes
        if scratch is None:
            return _nan(count)
        at = (s.offset or 0) // F32.bytes
        return scratch[at:at + count]

    def run(self) -> Arrays:
        for item in self.nest.body:
            self._item(item, {}, {})
        return {n: self.flat[n].reshape(self.shapes[n]) for n in self.outputs} | self.updated

    def _item(self, item: Loop | TileCall, around: dict[str, Loop], at: dict[str, int]) -> None:
        if isinstance(item, TileCall):
            self._call(item, Scope(around), at)
            return
        begin, end = item.span
        if item.parent:
            begin, end = at[item.parent], at[item.parent] + at[f"{item.parent}_size"]
        inside = {**around, item.variable: item}
        for start in range(begin, end, item.step):
            here = {**at, item.variable: start, f"{item.variable}_size": min(item.step, end - start)}
            for child in item.body:
                self._item(child, inside, here)

    # -- one call ------------------------------------------------------------------------------------
    def _call(self, call: TileCall, scope: Scope, at: dict[str, int]) -> None:
        op = REGISTRY[call.op]
        site = whole_site(call, scope, {})
        extents = {n: p.value(at) for n, p in call_extents(call, scope, site)[0].items()}
        attrs = {**op.defaults(), **call.attrs, **{a: extents[n] for n, a in op.sized.items()}}
        starts = {v: at[loop.parent] if loop.parent else loop.span[0] for v, loop in scope.loops.items()}
        adds = {slot: any(at[v] != starts[v] for v in over) or not over for slot, over in call.adds.items()}
        given = {s: self._given(call, op, s, w, scope, at) for s, w in call.inputs.items()
                 if s not in op.once or not any(adds.values())}
        given, state = self._carry(call, op, scope, at, given)
        if call.scratch:
            self.flat[call.scratch][...] = np.nan
        if op.own_update:
            made = {op.own_update: given[next(s for s in given if s != op.own_update)]}
        else:
            made = op.reference(given, attrs)
        for slot, window in call.outputs.items():
            value = made.get(slot)
            if value is None:       # a kernel's state that no definition speaks of: any number, to know it again
                self.count += 1
                value = np.full([p.value(at) for p in self._place(window, scope).extents], float(self.count))
            if not op.inputs:       # made of nothing: as large as it is asked for
                value = np.broadcast_to(value.reshape(-1), [p.value(at) for p in self._place(window, scope).extents])
            self._write(call, op, slot, window, scope, at, value, adds.get(slot, False))
        for slot, window in call.updates.items():
            gradient = f"d_{slot}" if slot != op.own_update else slot
            self._update(op, gradient, window, scope, at, made[gradient])
        if state is not None:
            self.states[state] = given, {s: self._read(w, scope, at) for s, w in call.outputs.items()}

    def _carry(self, call: TileCall, op: Op, scope: Scope, at: dict[str, int],
               given: Arrays) -> tuple[Arrays, tuple[object, ...] | None]:
        """What the call has been given so far, of an index that comes tile by tile; and the key it is remembered by."""
        if not call.carried:
            return given, None
        (index, variable), = call.carried.items()
        inner = {variable}
        while scope.loops[variable].parent:
            variable = scope.loops[variable].parent
            inner.add(variable)
        key = (id(call), *(at[v] for v in scope.loops if v not in inner))
        if all(at[v] == 0 for v in inner):
            return given, key
        before, results = self.states[key]
        for slot, window in call.outputs.items():
            if not np.array_equal(self._read(window, scope, at), results[slot]):
                raise VerificationError(f"{call.op} ({call.where}): {window.tensor} did not keep its state from tile to "
                                        f"tile of {index}")
        joined = {}
        for slot, value in given.items():
            axis = next((n for n, a in enumerate(op.axes(slot)) if index in a.indices), None)
            joined[slot] = value if axis is None else np.concatenate([before[slot], value], axis)
        return joined, key

    # -- windows -------------------------------------------------------------------------------------
    def _place(self, window: Window, scope: Scope) -> Place:
        return place(window, self.shapes[window.tensor], self.layouts.get(window.tensor, ROWS), scope,
                     strip_of(self.nest.stored.get(window.tensor), self.shapes))

    def _where(self, window: Window, scope: Scope, at: dict[str, int]) -> np.ndarray:
        """The positions of a window's elements in its flat array."""
        p = self._place(window, scope)
        extents = [e.value(at) for e in p.extents]
        steps = [p.row, p.col][-len(extents):]
        where = np.full(extents, p.at.value(at))
        for n, (extent, step) in enumerate(zip(extents, steps, strict=True)):
            along = np.arange(extent) * step.value(at)
            where += along.reshape([-1 if i == n else 1 for i in range(len(extents))])
        return where

    def _read(self, window: Window, scope: Scope, at: dict[str, int]) -> np.ndarray:
        return self.flat[window.tensor][self._where(window, scope, at)]

    def _given(self, call: TileCall, op: Op, slot: str, window: Window, scope: Scope, at: dict[str, int]) -> np.ndarray:
        """What a call is given in a slot: of a matrix's gradient the trained rows and columns of the window."""
        if not (matrix := matrix_of(op, slot)):
            return self._read(window, scope, at)
        _, where = self._trained({**call.inputs, **call.updates}[matrix], scope, at)
        return self.flat[window.tensor][np.arange(where.size).reshape(where.shape)]

    def _write(self, call: TileCall, op: Op, slot: str, window: Window, scope: Scope, at: dict[str, int],
               value: np.ndarray, add: bool) -> None:
        if matrix := matrix_of(op, slot):
            chosen, where = self._trained(call.inputs[matrix], scope, at)
            value = _within(value, chosen)
            if window.tensor in self.nest.stored:
                where = np.arange(where.size).reshape(where.shape)
        else:
            where = self._where(window, scope, at)
        value = value.reshape(where.shape)
        flat = self.flat[window.tensor]
        flat[where] = flat[where] + value if add else value

    def _trained(self, window: Window, scope: Scope, at: dict[str, int]) -> tuple[list[np.ndarray], np.ndarray]:
        """Of a matrix's window: the rows and columns in it that are trained, and where they are in the trained part."""
        place_ = self._place(window, scope)
        begins, extents = ([p.value(at) for p in found] for found in (place_.begins, place_.extents))
        chosen = [np.arange(k) for k in extents]
        lists = [np.arange(b, b + k) for b, k in zip(begins, extents, strict=True)]
        columns = self.shapes[window.tensor][1]
        if window.tensor in self.parts:
            axis, index = self.parts[window.tensor]
            n = int(axis == "cols")
            lists[n] = np.array([i for i, c in enumerate(index) if begins[n] <= c < begins[n] + extents[n]], int)
            chosen[n] = np.array(index, int)[lists[n]] - begins[n]
            columns = len(index) if axis == "cols" else columns
        return chosen, lists[0][:, None] * columns + lists[1][None]

    def _update(self, op: Op, slot: str, window: Window, scope: Scope, at: dict[str, int], value: np.ndarray) -> None:
        name = window.tensor
        gradient = self.updated.setdefault(f"d_{name}", np.full(self._part_shape(name), np.nan))
        if op.slots[slot].kind == "matrix":
            chosen, where = self._trained(window, scope, at)
            value = value if slot == op.own_update else _within(value, chosen)
        else:
            where = self._where(window, scope, at)
        gradient.ravel()[where] = value.reshape(where.shape)
        self._poison(name, where)

    def _part_shape(self, name: str) -> Shape:
        shape = self.shapes[name]
        if name not in self.parts:
            return shape
        axis, index = self.parts[name]
        return (shape[0], len(index)) if axis == "cols" else (len(index), shape[1])

    def _poison(self, name: str, where: np.ndarray) -> None:
        """where: positions in the trained part."""
        if name in self.parts:
            axis, index = self.parts[name]
            rows, cols = np.divmod(where, self._part_shape(name)[1])
            rows, cols = (rows, np.array(index)[cols]) if axis == "cols" else (np.array(index)[rows], cols)
            where = rows * self.shapes[name][1] + cols
        self.flat[name][where] = np.nan


def _within(gradient: np.ndarray, chosen: list[np.ndarray]) -> np.ndarray:
    """The chosen rows and columns; a gradient of chosen ones alone is as it is."""
    shape = tuple(len(c) for c in chosen)
    return gradient if gradient.shape == shape else gradient[np.ix_(*chosen)]


def _nan(count: int) -> np.ndarray:
    return np.full(count, np.nan)
