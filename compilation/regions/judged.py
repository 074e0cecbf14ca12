"""What the parts of the judge of nests know of a nest: its tensors, its calls, and which windows they touch."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

from compilation.errors import VerificationError
from compilation.ops import Op, Site
from compilation.regions.loops import ROWS, Axis, Loop, Nest, Stored, TileCall
from compilation.regions.windows import Parts, Place, Scope, Shape, matrix_of, windows

Memory = tuple[object, ...]


@dataclass(eq=False)
class Tensor:
    """A slot of the region or a tensor of the nest. rows, cols: of its storage. uses: what touches it."""

    name: str
    shape: Shape
    layout: str = ROWS
    kind: str = "stored"                # stored | input | output
    stored: Stored | None = None
    slot: str = ""                      # the slot of the region that it stands in
    gradient: bool | None = None        # whether it holds the gradient of a matrix
    uses: list[Use] = field(default_factory=list)
    home: tuple[Loop, ...] = ()         # the loops in whose every iteration it begins anew
    shares: set[str] = field(default_factory=set)       # loops of whose sum it holds one tile's share
    valid: int = 0                      # elements that hold its values; of an input, that were not updated
    read: int = 0                       # elements that were read since they were written
    open: int = 0                       # elements whose kernel has not seen the last tile
    by: str = ""                        # what last took over some of its elements

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def cols(self) -> int:
        return self.shape[-1] if self.shape else 1

    @cached_property
    def memory(self) -> Memory:
        """What has the same elements in the same places has the same memory."""
        if self.slot:
            return ("slot", self.slot)
        origins = tuple(a.origin for a in self.uses[0].axes) if self.uses else ()
        return (self.stored.offset if self.stored else None, self.shape, self.layout, origins)


@dataclass(eq=False)
class Use:
    """A slot's window. axes: always two. update: the parameter is updated."""

    slot: str
    tensor: Tensor
    axes: tuple[Axis, Axis]
    place: Place
    write: bool
    update: bool = False
    masks: dict[tuple[int, ...], int] = field(default_factory=dict)

    @cached_property
    def spots(self) -> tuple[Axis, Axis]:
        """The axes in what the tensor stands in."""
        strip = self.tensor.stored.strip if self.tensor.stored else None
        return self.axes if strip is None else (self.axes[0], strip)

    @cached_property
    def loops(self) -> tuple[str, ...]:
        """The loops whose present tiles decide where the window is."""
        return tuple(a.loop for a in self.spots if a.loop)


@dataclass(eq=False)
class Called:
    """A call in its loops; n counts calls."""

    n: int
    call: TileCall
    op: Op
    scope: Scope
    around: tuple[Loop, ...]
    site: Site
    reads: list[Use] = field(default_factory=list)
    writes: list[Use] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"call {self.n} {self.call.op} ({self.call.where or 'no module path'})"

    def followed(self, index: str) -> set[str]:
        """The loops, outer ones of the same index included, that tile an index of the operation."""
        found = set()
        for slot, window in windows(self.call).items():
            axes = self.op.line.axes.get(slot, ())
            for axis, along in zip(axes[-len(window.axes):], window.axes[-len(axes):] if axes else (), strict=False):
                if axis.index == index and along.loop:
                    found |= chain(self.scope, along.loop)
        return found


def chain(scope: Scope, variable: str) -> set[str]:
    """A loop and the loops that it walks tiles of, those that have their index in one tile excepted."""
    found = set()
    while variable:
        if not scope.whole(variable):
            found.add(variable)
        variable = scope.loops[variable].parent
    return found


class Judged:
    """A nest and what is known of it. users: tensor -> the calls that touch it. work: id of a TileCall -> its scratch.

    The arguments are those of `judge`.
    """

    def __init__(self, nest: Nest, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], parts: Parts,
                 updates: Collection[str], over: Mapping[str, str]) -> None:
        self.nest, self.parts, self.updates = nest, parts, updates
        self.shapes: Mapping[str, Shape] = {**inputs, **outputs}
        self.tensors = {n: Tensor(n, tuple(s), kind="input", slot=n) for n, s in inputs.items()}
        self.tensors |= {n: Tensor(n, tuple(s), kind="output", slot=over.get(n, n)) for n, s in outputs.items()}
        self.calls: dict[int, Called] = {}     # id of the TileCall -> it
        self.users: dict[Tensor, list[Called]] = {}
        self.work: dict[int, Tensor] = {}
        self.at = ""

    def fail(self, text: str) -> NoReturn:
        raise VerificationError(f"{self.at}: {text}" if self.at else text)

    def size(self, c: Called, use: Use) -> tuple[int, int]:
        """Rows and columns of what a window is a window of: of a gradient of a matrix, the whole matrix."""
        if not use.update and (matrix := matrix_of(c.op, use.slot)):
            shape = self.tensors[{**c.call.inputs, **c.call.updates}[matrix].tensor].shape
            return shape[0], shape[1]
        return use.tensor.rows, use.tensor.cols
