"""Leaves called on windows: tile by tile, inside larger buffers whose other elements must stay as they are."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from compilation.ops.base import Arrays, Op, Sample, Site, Slot
from tests.compilation.kernel_library import In, Memory, Out, Sink, Step, matrix, site_of, structures

GUARD = np.float32(-12345.678)
MARGIN = 3          # rows and columns around a token matrix that do not belong to it


class Home:
    """A token matrix within a larger buffer. layout: "rows", "panel" (columns lie one after another), or "spread"."""

    def __init__(self, shape: tuple[int, ...], layout: str, fill: np.float32) -> None:
        self.n, self.c = int(np.prod(shape[:-1])), shape[-1]
        outer, inner = (self.c, self.n) if layout == "panel" else (self.n, self.c)
        step = 2 if layout == "spread" else 1
        self.buffer = np.full((outer + 2 * MARGIN, (inner + 2 * MARGIN) * step), fill, np.float32)
        inside = self.buffer[MARGIN:MARGIN + outer, MARGIN * step:(MARGIN + inner) * step:step]
        self.array = inside.T if layout == "panel" else inside      # (n, c), elements of the buffer
        self.before = self.buffer.copy()

    def window(self, kind: type, t0: int, c0: int, add: bool = False) -> Any:
        row, col = (s // 4 for s in self.array.strides)
        at = self.array.ctypes.data + 4 * (t0 * row + c0 * col)
        return Out(at, row, col, int(add)) if kind is Out else In(at, row, col)

    def intact(self) -> bool:
        """Whether all but the matrix is as it was."""
        now = self.buffer.copy()
        outside = np.ones(now.shape, bool)
        view = np.lib.stride_tricks.as_strided(outside.reshape(-1)[self._first():], self.array.shape,
                                               [s // 4 for s in self.array.strides])
        view[...] = False
        return np.array_equal(now[outside], self.before[outside], equal_nan=True)

    def _first(self) -> int:
        return (self.array.ctypes.data - self.buffer.ctypes.data) // 4


@dataclass
class Tiled:
    """What a leaf made, tile by tile. `intact`: nothing beside its results was written."""

    outputs: Arrays
    intact: bool
    calls: int = 0
    macs: int = 0


@dataclass
class Leaf:
    """A leaf with the operands of one sample, to be called in tiles.

    layouts: tile slot -> layout. alias: output slot -> input slot that it takes the place of.
    """

    library: ct.CDLL
    op: Op
    sample: Sample
    layouts: Mapping[str, str]
    alias: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.site = site_of(self.op, self.sample)
        self.sizes = self.op.bind(self.site)
        self.wants = tuple(s.name for s in self.op.outputs if not self.op.on_request(s.name) or s.name in self.sample.wants)
        self.args = structures()[f"{self.op.symbol}_args"]
        self.fields = dict(self.args._fields_)  # type: ignore[attr-defined]

    def shape(self, slot: Slot) -> tuple[int, ...]:
        inferred = self.op.infer(self.site)
        return inferred[slot.name].shape if slot.name in inferred else self.op.line.shape(slot.name, self.sizes)

    def run(self, steps: Mapping[str, int]) -> Tiled:
        """Tiles of the indices in steps, the first index outermost, and of those that have a limit; else whole."""
        steps = {**{n: min(most, self.sizes[n]) for n, most in self.op.limit.items()}, **steps}
        self.memory, self.homes, self.flat = Memory(), {}, {}
        for s in self.op.inputs:
            if s.name in self.sample.inputs:
                self._place(s, self.sample.inputs[s.name])
        for s in self.op.outputs:
            if s.name in self.wants and s.name not in self.alias and self.exists(s, steps):
                self._place(s, None)
        for out, into in self.alias.items():
            self.homes[out] = self.homes[into]
        made = Tiled({}, True)
        for starts in product(*(range(0, self.sizes[n], step) for n, step in steps.items())):
            self._call(dict(zip(steps, starts, strict=True)), steps, made)
        outputs = [s for s in self.op.outputs if s.name in self.wants and not s.optional]
        made.outputs = {s.name: np.array(self.homes[s.name].array if s.kind == "tile" else self.flat[s.name], np.float64)
                        for s in outputs}
        made.intact &= self.memory.intact() and all(home.intact() for home in self.homes.values())
        return made

    def exists(self, slot: Slot, steps: Mapping[str, int]) -> bool:
        """Outputs that are carried only are there only where their index is in tiles."""
        return not slot.optional or any(steps.get(n, self.sizes[n]) < self.sizes[n]
                                        for n, slots in self.op.carried.items() if slot.name in slots)

    def _place(self, slot: Slot, value: np.ndarray | None) -> None:
        shape = self.shape(slot) if value is None else value.shape
        if slot.kind == "tile":
            home = Home(shape, self.layouts[slot.name], GUARD if value is None else np.float32(np.nan))
            home.array[...] = np.nan if value is None else value.reshape(home.array.shape)
            self.homes[slot.name] = home
        elif slot.kind == "matrix" and value is not None:
            self.flat[slot.name] = matrix(self.memory, self.sample, slot.name, f"d_{slot.name}" in self.wants)[0]
        else:
            self.flat[slot.name] = self.memory.output(shape) if value is None else self.memory.array(value, slot.element)

    def _call(self, starts: dict[str, int], steps: Mapping[str, int], made: Tiled) -> None:
        extents = {n: min(steps[n], self.sizes[n] - at) for n, at in starts.items()}
        site = self.op.window(self.site, extents)
        args = self.args()
        for slot in (*self.op.inputs, *self.op.outputs):
            if slot.name in self.homes or slot.name in self.flat:
                self._pass(args, slot, starts)
        for name, (kind, _) in self.op.fields.items():
            setattr(args, name, kind(site.attrs[name]))
        sizes = {**self.sizes, **extents}
        for name, size in self.op.dims(site).items():
            begin = name.removesuffix("_at")
            setattr(args, name, starts.get(begin, 0) if name != begin else sizes.get(name, size))
        for flag in {"first", "last"} & set(self.fields):
            ends = [starts.get(n, 0) == 0 if flag == "first" else starts.get(n, 0) + sizes[n] == self.sizes[n]
                    for n in self.op.carried]
            setattr(args, flag, int(all(ends)))
        size = self.op.scratch(site)
        if size:
            args.scratch = self.memory.buffer(size, 0x5A).ctypes.data
        macs = ct.c_uint64(0)
        getattr(self.library, self.op.symbol)(ct.byref(args), ct.byref(Step(0.05, 0.0, ct.pointer(macs))))
        made.calls += 1
        made.macs += macs.value

    def _pass(self, args: Any, slot: Slot, starts: dict[str, int]) -> None:
        kind = self.fields[slot.name]
        output = slot in self.op.outputs
        if output and any(at for n, at in starts.items() if n not in self.op.free(slot.name) + self.op.summed(slot.name)):
            return                                  # does not depend on that index: made at its first tile
        add = output and any(starts.get(n) for n in self.op.summed(slot.name) if n not in self.op.carried)
        if slot.kind == "tile":
            setattr(args, slot.name, self.homes[slot.name].window(kind, *self._begin(slot, starts), add))
        elif slot.kind == "matrix":
            value = self.flat[slot.name]
            setattr(args, slot.name, Sink(value.ctypes.data, None, None, int(add)) if kind is Sink else value)
        else:
            data = self.flat[slot.name]
            at = data.ctypes.data + data.itemsize * self._begin(slot, starts)[-1]
            setattr(args, slot.name, Sink(at, None, None, int(add)) if kind is Sink else at)

    def _begin(self, slot: Slot, starts: dict[str, int]) -> list[int]:
        """Where the slot's window begins along its axes. A composite's minor index is never cut."""
        return [starts.get(a.index, 0) * (self.sizes[a.inner] if a.inner else 1) * (a.factor if a.index else 0)
                for a in self.op.axes(slot.name)]


def layouts(op: Op, rng: np.random.Generator) -> dict[str, str]:
    """A layout for every tile slot: the one that the kernel asks for, else any."""
    return {s.name: op.layout.get(s.name) or str(rng.choice(["rows", "panel", "spread"]))
            for s in op.slots.values() if s.kind == "tile"}


def tilings(op: Op, sample: Sample, rng: np.random.Generator) -> Iterator[tuple[str, int]]:
    """Of each tileable index: tiles of one element, and two random sizes."""
    sizes = op.bind(site_of(op, sample))
    wants = [s.name for s in op.outputs if (not op.on_request(s.name) or s.name in sample.wants) and not s.optional]
    for n in op.tileable(wants):
        if sizes.get(n, 1) > 1:
            for step in sorted({1, *map(int, rng.integers(1, sizes[n], 2))}):
                yield n, step


def whole_site(op: Op, sample: Sample) -> Site:
    """The site of a call on windows that are everything."""
    return op.window(site_of(op, sample), {})
