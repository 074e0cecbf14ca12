"""A loop nest as plain data: loops over tiles around kernel calls on windows of tensors.

A loop variable counts elements of its index: 0, step, 2 step ... The last tile may be shorter. A loop with a `parent` walks
the parent's present tile in smaller ones. An index may be cut between loops: the last tile is done in another way. What
a nest reads and writes are the slots of its region and `Stored` tensors of its own, which live in the region's scratch or
stand in one of its results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from compilation.program import Frozen, Plain
from compilation.types import Type

ROWS, PANEL = "rows", "panel"


@dataclass(frozen=True)
class Axis:
    """One axis of a window.

    It begins at factor * (start - origin) of the storage's axis, with `start` and `origin` loop variables ("" is 0;
    without `start` it begins where the storage does), and has factor * (present tile of start, else of origin) elements,
    or `size` where neither is given.
    """

    size: int               # elements, of a whole tile
    start: str = ""         # loop variable that the window follows
    origin: str = ""        # loop variable that the storage follows
    factor: int = 1         # elements for each element of the loop's index
    ahead: int = 0          # of a strip (see Stored): it begins this many elements of the index further on

    @property
    def loop(self) -> str:
        """The loop whose present tile this is; "" for a fixed size."""
        return self.start or self.origin


@dataclass(frozen=True)
class Window:
    """A part of a tensor: of a slot of the region, or of a Stored tensor. Weights: (rows, columns) of the whole matrix."""

    tensor: str
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor of the nest's own. Type: the shape of what exists at once, whole tiles.

    layout: ROWS, element (t, c) at t * columns + c; PANEL, at c * T + t with T the present tile's tokens.
    offset: bytes into the region's scratch; None where it stands in the slot `stands`, element for element, or, with
    `strip`, row for row in these columns of it.
    """

    name: str
    type: Type
    layout: str = ROWS
    offset: int | None = None
    stands: str = ""
    strip: Axis | None = None


@dataclass(frozen=True)
class TileCall(Plain):
    """A kernel call on windows. Slots as in `Call`.

    adds: output slot -> loop variables: it adds to what stands there unless all of them are at their first tile
    (none: it always adds); a slot that is not listed is written afresh.
    carried: index -> loop variable, where it is tiled: the kernel is told its first and its last tile.
    updates: parameter slot of the operation -> window of the region's parameter that its gradient is applied to.
    """

    holds = ("inputs", "outputs", "attrs", "updates", "adds", "carried")
    op: str
    inputs: Mapping[str, Window]
    outputs: Mapping[str, Window]
    attrs: Mapping[str, Any] = field(default_factory=Frozen)
    updates: Mapping[str, Window] = field(default_factory=Frozen)
    adds: Mapping[str, tuple[str, ...]] = field(default_factory=Frozen)
    carried: Mapping[str, str] = field(default_factory=Frozen)
    scratch: str = ""       # Stored tensor for the kernel's own scratch
    where: str = ""         # module path


@dataclass(frozen=True)
class Loop:
    """for variable in 0 .. extent by step, or, with a parent, over the parent's present tile.

    part: (begin, end), of the index's `extent` elements those that it walks, from a tile's begin to a tile's end; None: all.
    """

    variable: str
    extent: int
    step: int
    body: tuple[Loop | TileCall, ...]
    parent: str = ""
    part: tuple[int, int] | None = None

    @property
    def span(self) -> tuple[int, int]:
        """Where it begins and ends; of one with a parent, in a full tile."""
        return self.part or (0, self.extent)

    @property
    def trips(self) -> int:
        """Iterations over the whole span."""
        begin, end = self.span
        return -(-(end - begin) // self.step)


@dataclass(frozen=True)
class Nest:
    """The body of a region under one schedule. scratch: bytes."""

    stored: Mapping[str, Stored]
    body: tuple[Loop | TileCall, ...]
    scratch: int

    def calls(self) -> Iterator[tuple[tuple[Loop, ...], TileCall]]:
        """Every call with the loops around it, outermost first, in order."""
        return walk(self.body)


def walk(items: tuple[Loop | TileCall, ...], around: tuple[Loop, ...] = ()) -> Iterator[tuple[tuple[Loop, ...], TileCall]]:
    """Every call of a loop body with the loops around it."""
    for item in items:
        if isinstance(item, Loop):
            yield from walk(item.body, (*around, item))
        else:
            yield around, item
