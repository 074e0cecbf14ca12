"""One definition for each operation: types, NumPy reference, gradient, cost, kernel, samples.

Code generation, verification, the cost model and the tests walk `REGISTRY`. Shapes have no batch
dimension: the device trains with batch 1, a token matrix is (tokens, features).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from compilation.ops.indices import ANY, Axes, Axis, Line, bind, parse
from compilation.target import Target
from compilation.types import F32, Element, Shape, Type

Shapes = dict[str, Shape]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Slot:
    """An argument of an operation.

    kind: "tile" (a token matrix of two axes, passed as a window: vt_in, vt_out), "tensor" (a plain buffer),
    "vector" (a 1-D or small parameter; trainable as a whole), "matrix" (a Weight, possibly in two parts; see
    `program.Weight`), "index" (a constant list of columns of the slot `of`).
    of: for a tile, the matrix slot of which it has the trained columns only, not all.
    optional: may be absent. An optional output is there only where an index that it is carried over is tiled.
    """

    name: str
    kind: str = "tensor"
    optional: bool = False
    element: Element = F32
    of: str = ""

    @property
    def sink(self) -> bool:
        """Whether the output is a parameter's gradient: written out, added to one, or applied at once (vt_sink)."""
        return self.name.startswith("d_") and self.kind in ("vector", "matrix")

    @property
    def parameter(self) -> bool:
        """Whether the input can only be a parameter."""
        return self.kind in ("vector", "matrix")


@dataclass(frozen=True)
class Sample:
    """A test case: inputs (float64 arrays, matrices whole), attributes, and, for gradient operations,
    which gradients are wanted and which matrices are trained in part: slot -> (axis, index)."""

    inputs: Arrays
    attrs: dict[str, Any] = field(default_factory=dict)
    wants: tuple[str, ...] = ()
    parts: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Site:
    """What an operation may know of one call: the shapes of its inputs, its attributes,
    the wanted outputs, and of each matrix how much is trained: slot -> (axis, n_trained)."""

    shapes: Shapes
    attrs: Mapping[str, Any]
    wants: frozenset[str] = frozenset()
    parts: dict[str, tuple[str, int]] = field(default_factory=dict)
    updates: frozenset[str] = frozenset()       # those of the wanted outputs that are gradients applied at once

    def has(self, slot: str) -> bool:
        return slot in self.shapes

    def part(self, slot: str) -> Shape:
        """Shape of the trained part of a matrix slot: the shape of its gradient."""
        rows, cols = self.shapes[slot]
        if slot not in self.parts:
            return rows, cols
        axis, n = self.parts[slot]
        return (rows, n) if axis == "cols" else (n, cols)


class Setting(NamedTuple):
    """One way to run a call. attrs: its schedule attributes; scratch: bytes; macs: multiply-accumulates; time: estimated, in
    multiply-accumulates of full tiles."""

    attrs: dict[str, Any]
    scratch: int
    macs: int
    time: int


class Op:
    """An operation. Subclasses set the class variables and override the methods.

    A gradient operation's output for the input slot ``s`` is called ``d_s``; which of them a call makes
    is its `wants`. For a matrix trained in part, ``d_s`` has the shape of the trained part.

    A *leaf* is an operation whose kernel works on windows of its operands: it has slots of kind "tile", and shapes, the
    fields of its C struct and what a tile means follow from its index line. As an example that uses everything,

        x: n h*[d], w: o h*[d] -> y: n o, high: n h      sized = {"h": "heads"}

    n and o may be tiled and so may h, k of it meaning k * d columns of x and w; d may not. A call's struct has the window's
    extents n, h, d, o, and, as they are axes of a matrix, where the window begins in the whole: o_at, h_at, d_at.
    """

    name: ClassVar[str]
    symbol: ClassVar[str]                       # C function: void symbol(const symbol_args *, const vt_step *)
    source: ClassVar[str]                       # file in runtime/kernels
    inputs: ClassVar[tuple[Slot, ...]]
    outputs: ClassVar[tuple[Slot, ...]]
    indices: ClassVar[str]                      # the axes of the slots, as in "x: n c, w: o c -> y: n o" (ops/indices.py)
    sized: ClassVar[dict[str, str]] = {}        # index -> integer attribute that is its size (no field of its own in C)
    attrs: ClassVar[dict[str, tuple[type, Any]]] = {}  # name -> (int or float: int32_t or float in C, default)
    legal: ClassVar[dict[str, Container[int]]] = {}   # integer attribute -> the values that the kernel is written for
    schedule: ClassVar[tuple[str, ...]] = ()    # attributes that change memory, speed and, where a sum is cut, last bits
    inplace: ClassVar[dict[str, str]] = {}      # output slot -> input slot whose storage it may take over
    vanishes: ClassVar[tuple[tuple[str, ...], ...]] = ()   # the result is all zero where all of one of these are (or absent)
    gradient: ClassVar[str | None] = None       # name of the gradient operation
    gradients: ClassVar[dict[str, tuple[str, ...]]] = {}   # or input slot -> (operation, its inputs: slots or dy)
    relax: ClassVar[str] = ""                   # Relax operation of one input, element by element, that is imported as this
    own_update: ClassVar[str | None] = None     # parameter slot that the operation updates with an input, not a gradient
    needed_for: ClassVar[dict[str, tuple[str, ...]]] = {}  # input slot -> outputs; read only if one of them is wanted

    # Of leaves:
    adds: ClassVar[tuple[str, ...]] = ()        # output slots that the kernel can add to what stands there (`add` in C);
                                                # what it makes jointly, with one shape, it can add up in one place, too
    once: ClassVar[tuple[str, ...]] = ()        # input slots that are not read where the call adds: the bias of a sum
    carried: ClassVar[dict[str, tuple[str, ...]]] = {}     # index -> output slots that carry state from tile to tile of it
    layout: ClassVar[dict[str, str]] = {}       # tile slot -> "panel" (c * T + t) or "rows" (t * ld + c), else any
    limit: ClassVar[dict[str, int]] = {}        # index -> most elements of it in one call
    linear: ClassVar[dict[str, tuple[str, ...]]] = {}      # input slot -> outputs that are linear in it
    joint: ClassVar[bool] = False               # its outputs are made together, not each by a call of its own
    before: ClassVar[str | None] = None         # operation that makes the inputs a call lacks, from those of its own names
    remakes: ClassVar[dict[str, str]] = {}      # gradient: output slot -> output slot of the forward operation that it gives
    inner: ClassVar[bool] = False               # only regions call it: on buffers of theirs
    effort: ClassVar[int] = 0                   # time of an element, in additions, besides one
    slow: ClassVar[float] = 1                   # time of its multiply-accumulates against a plain product's
    scored: ClassVar[tuple[str, str] | None] = None     # two inputs of which only the products row by row, by head, matter
    mixed: ClassVar[str | None] = None          # the input of which a row of the result is a weighted mean, head by head
    by_head: ClassVar[tuple[str, str] | None] = None    # of one token: operations that map its heads by w, by its transpose
    shift_free: ClassVar[tuple[str, ...]] = ()  # inputs where one vector added to all rows changes nothing
    shifts: ClassVar[tuple[str, ...]] = ()      # inputs where that (or a vector's change) adds one to all rows of the result

    @cached_property
    def line(self) -> Line:
        """The index line as data."""
        return parse(self.indices)

    @cached_property
    def leaf(self) -> bool:
        """Whether the kernel works on windows of its operands."""
        return any(s.kind == "tile" for s in self.slots.values())

    def axes(self, slot: str) -> Axes:
        """The axes of a slot: of `linear`, axes("w") is (Axis("o"), Axis("c"))."""
        return self.line.axes[slot]

    def free(self, output: str) -> tuple[str, ...]:
        """Indices whose tiles are tiles of this output: of `linear_grad`, free("d_w") is ("o", "c")."""
        return self._tiled((output,))

    def summed(self, output: str) -> tuple[str, ...]:
        """Indices whose tiles all add to this output, being in inputs only that are read for it: of `linear_grad`,
        summed("d_w") is ("n",) and summed("d_x") is ("o",)."""
        inputs = [s.name for s in self.inputs if output in self.needed_for.get(s.name, (output,))]
        return tuple(n for n in self._tiled(inputs) if n not in self._tiled((output,)))

    def tileable(self, wants: Iterable[str]) -> tuple[str, ...]:
        """Indices that may be taken in tiles by a call that makes these outputs: each is free for an output, or carried
        from tile to tile for it, or the output can be added to, or it does not depend on the index at all. Of
        `linear`, tileable(("y",)) is ("n", "c", "o"); of `layer_norm_grad`, tileable(("d_x",)) is ("n", "h")."""
        wants = tuple(wants)
        return tuple(n for n in self._tiled(self.line.axes) if all(
            n not in self.summed(s) or s in self.adds or n in self.carried for s in wants))

    def _tiled(self, slots: Container[str]) -> tuple[str, ...]:
        return tuple(n for n in self.line.indices(s for s in self.line.axes if s in slots) if n not in self.line.whole)

    @cached_property
    def placed(self) -> tuple[str, ...]:
        """Indices along which the call is told where its window begins, in the field `<index>_at`: the axes of matrices
        and of their gradients, which are passed whole. Of `linear`: ("o", "c")."""
        return self.line.indices(s.name for s in self.slots.values() if s.kind == "matrix" and s.name in self.line.axes)

    def on_request(self, output: str) -> bool:
        """Whether a call makes this output only where it is wanted: a gradient, or the forward result once more."""
        return output.startswith("d_") or output in self.remakes

    def bind(self, site: Site) -> dict[str, int]:
        """Index -> size. Raises ValueError naming the slot whose shape does not fit.

        Of `linear` with x (19, 33) and w (21, 33): {"n": 19, "c": 33, "o": 21}.
        """
        return bind(self.indices, site.shapes, {n: int(self.attr(site, a)) for n, a in self.sized.items()})

    def window(self, site: Site, extents: Mapping[str, int]) -> Site:
        """The site of a call on windows: with these extents (at most) of some indices, and all of the others.

        Of a matrix trained in part as much is trained as a window of this size can have.
        """
        sizes = {**self.bind(site), **extents}
        shapes = {s: self.line.shape(s, sizes) if s in self.line.axes and self.line.axes[s] != ANY else shape
                  for s, shape in site.shapes.items()}
        parts = {s: (axis, min(n, shapes[s][axis == "cols"])) for s, (axis, n) in site.parts.items()}
        return Site(shapes, {**site.attrs, **{a: sizes[n] for n, a in self.sized.items()}}, site.wants, parts)

    def infer(self, site: Site) -> dict[str, Type]:
        """Output slot -> type, for every output slot the site can have."""
        sizes, made = self.bind(site), {}
        for slot in self.outputs:
            axes = self.axes(slot.name)
            if slot.optional or any(n not in sizes for a in axes for n in a.indices):
                continue
            alike = [s.name for s in self.inputs if site.has(s.name) and self.line.axes.get(s.name) == axes]
            parameter = slot.name.removeprefix("d_")
            if slot.kind == "matrix" and parameter in site.parts:
                made[slot.name] = Type(site.part(parameter), slot.element)
            elif alike and (axes[0].folds or (slot.sink and parameter in alike)):
                made[slot.name] = Type(site.shapes[parameter if parameter in alike else alike[0]], slot.element)
            else:
                made[slot.name] = Type(self.line.shape(slot.name, sizes), slot.element)
        return made

    def check(self, site: Site) -> None:
        """What shapes and attributes have to satisfy beyond `indices` and `legal`. Raises ValueError."""

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        """Float64 NumPy reference; gradient operations return every gradient (matrices whole)."""
        raise NotImplementedError

    def may_alias(self, site: Site) -> dict[str, str]:
        """Output slot -> input slot whose storage the result may take over, with these attributes."""
        return self.inplace

    def pointwise(self, read: str, written: str) -> bool:
        """Whether an element of one slot is read only to make the one in its place in another: that may take its storage."""
        return self.axes(read) == self.axes(written) and not self.line.whole \
            and not any(self.summed(o.name) for o in self.outputs)

    def dims(self, site: Site) -> dict[str, int]:
        """Integer fields of the C argument struct that are shapes (name -> value), as for whole operands."""
        return {**self.bind(site), **{f"{n}_at": 0 for n in self.placed}}

    def macs(self, site: Site) -> int:
        """Fused multiply-adds executed in sums of products: exactly what the kernel counts with VT_COUNT."""
        return 0

    def grain(self, wants: Iterable[str]) -> tuple[Axis, Axis] | None:
        """The axes along the lanes and the rows of a product's tiles: those of the first output, side by side first."""
        for slot in self.outputs:
            axes = self.line.axes.get(slot.name, ())
            if slot.name in wants and len(axes) == 2 and axes != ANY:
                return axes if self.layout.get(slot.name) == "panel" else (axes[1], axes[0])
        return None

    def elements(self, site: Site) -> int:
        """What each call goes through besides products: its results, or, of what makes no products, its largest operand."""
        made = [prod(t.shape) for slot, t in self.infer(site).items() if slot in site.wants]
        return sum(made) if self.macs(site) else max(made + [prod(shape) for shape in site.shapes.values()], default=0)

    def time(self, site: Site, target: Target) -> int:
        """Estimated time of a call, in multiply-accumulates of full tiles."""
        macs, price = self.macs(site), 1.0
        if self.leaf and macs and (grain := self.grain(site.wants)):
            sizes = self.bind(site)
            lanes, rows = (axis.size(sizes) for axis in grain)
            price = target.product((lanes, lanes), (rows, rows))
        return int(target.time(macs * price * self.slow, self.elements(site), 1, self.effort if not macs else None))

    def scratch(self, site: Site) -> int:
        """Bytes of scratch the kernel needs with these schedule attributes: exact, all of it used."""
        return 0

    def schedules(self, site: Site) -> Iterator[dict[str, Any]]:
        """Settings of the schedule attributes worth trying, fastest first, least scratch last."""
        yield {}

    def settings(self, site: Site, target: Target) -> list[Setting]:
        """The settings worth trying, fastest first, least scratch last."""
        sites = [(o, replace(site, attrs={**site.attrs, **o})) for o in self.schedules(site)]
        return [Setting(o, self.scratch(s), self.macs(s), self.time(s, target)) for o, s in sites]

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        raise NotImplementedError

    def attr(self, site: Site, name: str) -> Any:
        """An attribute's value at this call, or its default."""
        return site.attrs.get(name, self.attrs[name][1])

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """Input and output slots by name."""
        return {s.name: s for s in (*self.inputs, *self.outputs)}

    @cached_property
    def fields(self) -> dict[str, tuple[type, Any]]:
        """The attributes that are fields of the C struct: all but those that are sizes of indices, which are in `dims`."""
        return {name: kind for name, kind in self.attrs.items() if name not in self.sized.values()}

    def defaults(self) -> dict[str, Any]:
        """Every attribute at its default."""
        return {name: default for name, (_, default) in self.attrs.items()}

    def updatable(self) -> set[str]:
        """Parameter slots that `Call.updates` may name."""
        fused = {s.name.removeprefix("d_") for s in self.outputs if s.sink}
        return fused | ({self.own_update} if self.own_update else set())


REGISTRY: dict[str, Op] = {}


def register(cls: type[Op]) -> type[Op]:
    """Class decorator: puts one instance into the registry."""
    if cls.name in REGISTRY:
        raise KeyError(f"operation {cls.name!r} is registered twice")
    REGISTRY[cls.name] = cls()
    return cls
