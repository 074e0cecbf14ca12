"""Columns of a result that nothing has written yet are storage.

A loop that writes a result tile by tile of its columns leaves those of the next tile alone until it gets there. What is kept
in one iteration, all rows and a tile of columns of it, stands there in the meantime. The last iteration has no next tile and
is looped by itself (`build`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compilation.regions.loops import ROWS
from compilation.regions.nest import Block, Instance

if TYPE_CHECKING:
    from compilation.regions.memory import Layout, Storage


@dataclass(frozen=True, eq=False)
class Ahead:
    """A place in a result: the columns that the next iteration of a loop writes. factor: columns for each element of the
    loop's label."""

    result: Storage
    loop: Block
    factor: int


def find_strips(layout: Layout, result: Storage, group: Sequence[Instance], loop: Block) -> list[tuple[Storage, Ahead]]:
    """What stands ahead of a loop in a result. group: the result and what stands in it.

    None of them may be touched before the loop, nor in it but in the present tile's columns.
    """
    touches = [t for i in group for t in layout.touches(i)]
    first, last = layout.spans[id(loop)]
    inside = [t.placed.statement.along(t.slot)[-1] for t in touches if first <= layout.at[id(t.placed)] <= last]
    if len(result.shape) != 2 or not inside or any(layout.at[id(t.placed)] < first for t in touches) \
            or any(a.label is not loop.label or a.factor != inside[0].factor for a in inside):
        return []
    factor = inside[0].factor
    taken: list[Storage] = []
    for s in sorted(layout.storages.values(), key=lambda s: -s.size):
        if s.over is None and s.home[:1] == (loop,) and s.shape == (result.shape[0], factor * loop.step) \
                and _is_strip(layout, s, loop) and not any(_meet(layout, s, o) for o in taken):
            taken.append(s)
    return [(s, Ahead(result, loop, factor)) for s in taken]


def _is_strip(layout: Layout, s: Storage, loop: Block) -> bool:
    """Whether a tensor has all rows and the loop's present tile of columns, all of which each access has."""
    if s.origins != (None, loop) or s.instance.layout != ROWS:
        return False
    for t in layout.touches(s.instance):
        statement = t.placed.statement
        label = statement.along(t.slot)[-1].label
        if statement.op.slots[t.slot].kind != "tile" or [b for b in t.placed.path if b.label is label][-1:] != [loop]:
            return False
    return True


def _meet(layout: Layout, s: Storage, other: Storage) -> bool:
    """Whether they live at once in an iteration of the loop that both stand in."""
    (a, b), (c, d) = (_life(layout, x) for x in (s, other))
    return a <= d and c <= b


def _life(layout: Layout, s: Storage) -> tuple[int, int]:
    spans = [layout.span(t.placed, s.home[:1]) for t in layout.touches(s.instance)]
    return min(a for a, _ in spans), max(b for _, b in spans)
