"""What the loops of a region take: multiply-accumulates and estimated time, at one or at many combinations of steps.

Steps are arrays, an element for each combination, by the loop they are of: so the search rates a structure's combinations
at once, and a finished nest is a combination of its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from compilation.regions.nest import EARLY, Block, Placed

Steps = dict[int, np.ndarray]       # id of a loop -> its step, in each combination


def blocks(block: Block) -> list[Block]:
    """All loops under one, outer before inner."""
    found = []
    for item in block.items:
        if isinstance(item, Block):
            found += [item, *blocks(item)]
    return found


def own_steps(root: Block) -> Steps:
    """The steps that the loops have: one combination."""
    steps: Steps = {}
    for b in blocks(root):
        steps[id(b)] = own_step(b, np.array([b.step]), steps)
    return steps


def own_step(b: Block, given: np.ndarray, steps: Steps) -> np.ndarray:
    """The steps that a loop takes of those that are given."""
    return given if b.part else np.minimum(given, extent(b, steps, len(given)))


def extent(b: Block, steps: Steps, count: int) -> np.ndarray:
    """Elements that a loop walks over: all of its label, its last tile or the others, or those of the block that it stands
    in."""
    assert b.label is not None
    if b.part:
        return b.label.size - steps[id(b)] if b.part == EARLY else steps[id(b)]
    outer = [x for x in b.path[:-1] if x.label is b.label]
    return np.minimum(b.label.size, steps[id(outer[-1])]) if outer else np.full(count, b.label.size, dtype=np.int64)


def window(p: Placed, steps: Steps) -> dict[str, np.ndarray]:
    """Index -> its elements in one call, of the indices that loops run along."""
    s, found = p.statement, {}
    for index, (label, factor) in s.labels.items():
        inside = [b for b in p.path if b.label is label]
        if inside:
            found[index] = np.minimum(s.sizes[index], steps[id(inside[-1])] * factor)
    return found


def work(order: Iterable[Placed], steps: Steps, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(multiply-accumulates, estimated time in those of full tiles) of all statements, in each combination."""
    macs, time = np.zeros(count, dtype=np.int64), np.zeros(count)
    for p in order:
        s = p.statement
        times = np.ones(count, dtype=np.int64)         # how often each element is made: the tiles of loops along others
        whole, made = 1, np.ones(count, dtype=np.int64)     # of how many elements it makes how many
        for b in p.path:
            if b.label not in s.touches():
                times *= -(-extent(b, steps, count) // steps[id(b)])
            elif b.part and b.label is not None:
                whole, made = whole * b.label.size, made * extent(b, steps, count)
        macs += s.macs * times * made // whole
        time += times * (s.macs * price(p, steps, count) if s.macs else s.elements) * made / whole
    return macs, np.rint(time).astype(np.int64)


def price(p: Placed, steps: Steps, count: int) -> np.ndarray:
    """What a multiply-accumulate costs in tiles of this size, against one in large ones."""
    rate = np.ones(count)
    for size in window(p, steps).values():
        rate *= 1 + 3 / size
    return rate
