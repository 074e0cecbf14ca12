"""Where the windows of a nest are: their addresses, strides and extents as polynomials of loop variables and tile sizes.

This is what the data of `loops` means, said once: the interpreter evaluates it, the C prints it, the judge bounds it. The
present tile of the loop ``n`` has ``n_size`` elements; where that is the same in every iteration it is a number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from compilation.ops import REGISTRY, Op, Site
from compilation.regions.loops import PANEL, Axis, Loop, Stored, TileCall, Window

Shape = tuple[int, ...]
Parts = Mapping[str, tuple[str, int]]       # as `Site.parts`: parameter slot -> axis, how much of it is trained


@dataclass(frozen=True)
class Poly:
    """A sum of products of names with integer coefficients. Prints as C: ``16 * n + 4``."""

    terms: tuple[tuple[tuple[str, ...], int], ...] = ()

    @staticmethod
    def of(value: int | str) -> Poly:
        if isinstance(value, int):
            return Poly((((), value),) if value else ())
        return Poly((((value,), 1),))

    def __add__(self, other: Poly) -> Poly:
        sums = dict(self.terms)
        for names, n in other.terms:
            sums[names] = sums.get(names, 0) + n
        return Poly(tuple((names, n) for names, n in sorted(sums.items(), key=lambda t: (t[0] == (), t[0])) if n))

    def __mul__(self, other: Poly) -> Poly:
        made = Poly()
        for a, m in self.terms:
            made = sum((Poly(((tuple(sorted((*a, *b))), m * n),)) for b, n in other.terms), made)
        return made

    def __sub__(self, other: Poly) -> Poly:
        return self + other * Poly.of(-1)

    def __floordiv__(self, number: int) -> Poly:
        """Raises ValueError where it is not a multiple of the number."""
        if any(n % number for _, n in self.terms):
            raise ValueError(f"{self} is no multiple of {number}")
        return Poly(tuple((names, n // number) for names, n in self.terms))

    def __str__(self) -> str:
        text = ""
        for names, n in sorted(self.terms, key=lambda term: term[1] < 0):
            factors = " * ".join([*names, *([str(abs(n))] if abs(n) != 1 or not names else [])])
            text += (" - " if n < 0 else " + ") * bool(text) + ("-" if n < 0 and not text else "") + factors
        return text or "0"

    @property
    def number(self) -> int | None:
        """Its value where that is fixed."""
        return dict(self.terms).get((), 0) if all(not names for names, _ in self.terms) else None

    def value(self, at: Mapping[str, int]) -> int:
        return sum(n * math.prod(at[name] for name in names) for names, n in self.terms)


@dataclass(frozen=True)
class Scope:
    """The loops around a call, by variable."""

    loops: Mapping[str, Loop]

    @staticmethod
    def of(around: Iterable[Loop]) -> Scope:
        return Scope({loop.variable: loop for loop in around})

    def root(self, variable: str) -> Loop:
        """The loop that walks the whole index."""
        loop = self.loops[variable]
        return self.root(loop.parent) if loop.parent else loop

    def sizes(self, variable: str) -> set[int]:
        """The tile sizes that occur: at most whole tiles and the last."""
        loop = self.loops[variable]
        over = self.sizes(loop.parent) if loop.parent else {loop.span[1] - loop.span[0]}
        return {n for extent in over for n in (min(loop.step, extent), extent % loop.step) if n}

    def begin(self, variable: str) -> Poly:
        """The variable; where the loop has one iteration, its begin."""
        return Poly.of(self.loops[variable].span[0] if self.single(variable) else variable)

    def single(self, variable: str) -> bool:
        """Whether the loop has one iteration."""
        loop = self.loops[variable]
        return not loop.parent and loop.trips == 1

    def whole(self, variable: str) -> bool:
        """Whether that has the whole index."""
        return self.single(variable) and self.loops[variable].part is None

    def size(self, variable: str) -> Poly:
        """Elements of the present tile."""
        found = self.sizes(variable)
        return Poly.of(found.pop() if len(found) == 1 else f"{variable}_size")

    def full(self, axis: Axis) -> int:
        """Elements of the axis over all tiles."""
        return axis.factor * self.root(axis.loop).extent if axis.loop else axis.size

    def values(self, extent: Poly) -> set[int]:
        """The values that an extent, a polynomial of tile sizes, can have."""
        names = sorted({n for names, _ in extent.terms for n in names})
        sizes = [self.sizes(n.removesuffix("_size")) for n in names]
        return {extent.value(dict(zip(names, found, strict=True))) for found in product(*sizes)}

    def first(self, variable: str) -> str:
        """C: whether the loop is at its first tile; "" where it always is."""
        loop = self.loops[variable]
        return "" if self.single(variable) else f"{variable} == {self.begin(loop.parent) if loop.parent else loop.span[0]}"


@dataclass(frozen=True)
class Place:
    """A window in its storage. Element (t, c) is at + t * row + c * col floats from where the storage begins.

    begins, extents: of each axis, in the storage's own elements (of a matrix: of the whole matrix).
    """

    at: Poly
    row: Poly
    col: Poly
    begins: tuple[Poly, ...]
    extents: tuple[Poly, ...]

    @property
    def rows(self) -> Poly:
        """Extent of the first of two axes."""
        return self.extents[0] if len(self.extents) == 2 else Poly.of(1)


def place(window: Window, shape: Shape, layout: str, scope: Scope, strip: tuple[Axis, int] | None = None) -> Place:
    """shape: of the storage. A window of one axis is one row; leading axes of the storage fold into its rows.

    strip: where the storage is a strip of a tensor, which of its columns, and how many it has.
    """
    begins, extents = [], []
    for axis in window.axes:
        start = scope.begin(axis.start) if axis.start else scope.begin(axis.origin) if axis.origin else Poly()
        origin = scope.begin(axis.origin) if axis.origin else Poly()
        begins.append((start - origin) * Poly.of(axis.factor))
        extents.append(scope.size(axis.loop) * Poly.of(axis.factor) if axis.loop else Poly.of(axis.size))
    if not 1 <= len(begins) <= 2:
        raise ValueError(f"a window has one or two axes, not {len(begins)}")
    t, c = begins if len(begins) == 2 else (Poly(), begins[0])
    if layout == PANEL:
        first = window.axes[0]
        tokens = scope.size(first.origin) * Poly.of(first.factor) if first.origin else Poly.of(shape[0])
        return Place(c * tokens + t, Poly.of(1), tokens, tuple(begins), tuple(extents))
    row = Poly.of(shape[-1] if shape else 1)
    if strip is not None:
        axis, columns = strip
        row = Poly.of(columns)
        c = c + (scope.begin(axis.start) + Poly.of(axis.ahead)) * Poly.of(axis.factor)
    return Place(t * row + c, row, Poly.of(1), tuple(begins), tuple(extents))


def strip_of(stored: Stored | None, shapes: Mapping[str, Shape]) -> tuple[Axis, int] | None:
    """`place`'s, of a tensor of the nest's own. shapes: of the region's slots, by name."""
    return None if stored is None or stored.strip is None else (stored.strip, shapes[stored.stands][-1])


def matrix_of(op: Op, slot: str) -> str:
    """The matrix slot of whose gradient a slot is; "" where there is none.

    Its windows are given as those of the whole matrix. In a result there stands the whole trained part; a tensor of the
    nest's own holds the trained rows and columns of one window, row by row.
    """
    name = slot.removeprefix("d_")
    return name if name != slot and name in op.slots and op.slots[name].kind == "matrix" else ""


def windows(call: TileCall) -> dict[str, Window]:
    """Slot -> window, of all that the call touches; updates under the name of their gradient, an operation's own under its
    parameter's."""
    op = REGISTRY[call.op]
    return {**call.inputs, **call.outputs, **{f"d_{s}" if f"d_{s}" in op.slots else s: w for s, w in call.updates.items()}}


def whole_site(call: TileCall, scope: Scope, parts: Parts) -> Site:
    """The call as if it were one on whole tensors."""
    op = REGISTRY[call.op]
    given = {**call.inputs, **{s: w for s, w in call.updates.items() if s == op.own_update}}
    shapes = {s: tuple(map(scope.full, w.axes)) for s, w in given.items()}
    made = frozenset(f"d_{s}" for s in call.updates)
    own = {s: parts[w.tensor] for s, w in given.items() if op.slots[s].kind == "matrix" and w.tensor in parts}
    return Site(shapes, call.attrs, made | set(call.outputs), own, made)


def call_extents(call: TileCall, scope: Scope, site: Site) -> tuple[dict[str, Poly], dict[str, Poly]]:
    """(index -> elements of it in the present windows, index -> where they begin). site: `whole_site`.

    Raises ValueError where two slots disagree.
    """
    op = REGISTRY[call.op]
    sizes = op.bind(site)
    extents: dict[str, Poly] = {}
    begins: dict[str, Poly] = {}
    for slot, window in windows(call).items():
        axes = op.line.axes.get(slot, ())
        for axis, along in zip(axes[-len(window.axes):], window.axes[-len(axes):] if axes else (), strict=False):
            if not axis.index:
                continue
            inner = axis.factor * (sizes[axis.inner] if axis.inner else 1)
            extent = (scope.size(along.loop) * Poly.of(along.factor) if along.loop else Poly.of(along.size)) // inner
            begin = (scope.begin(along.loop) * Poly.of(along.factor) if along.loop else Poly()) // inner
            if extents.setdefault(axis.index, extent) != extent or begins.setdefault(axis.index, begin) != begin:
                raise ValueError(f"{slot} has {extent} elements from {begin} along {axis.index}, other slots "
                                 f"{extents[axis.index]} from {begins[axis.index]}")
    for index, size in sizes.items():
        extents.setdefault(index, Poly.of(size))
        begins.setdefault(index, Poly())
    return extents, begins
