"""What the loops of a region take: multiply-accumulates and estimated time, at one or at many combinations of steps.

Steps are arrays, an element for each combination, by the loop they are of: so the search rates a structure's combinations
at once, and a finished nest is a combination of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np

from compilation.regions.nest import EARLY, Block, Placed
from compilation.target import Extent, Numbers, Target

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


def work(order: Iterable[Placed], steps: Steps, count: int, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """(multiply-accumulates, estimated time in those of full tiles) of all statements, in each combination."""
    macs, time = np.zeros(count, dtype=np.int64), np.zeros(count)
    tiles: dict[int, np.ndarray] = {}
    for p in order:
        s, path = p.statement, p.path
        for b in path:
            if id(b) not in tiles:
                tiles[id(b)] = -(-extent(b, steps, count) // steps[id(b)])
        own = s.touches()
        calls = prod([tiles[id(b)] for b in path])
        times = prod([tiles[id(b)] for b in path if b.label not in own])     # how often each element is made
        share: Numbers = 1.0                           # of its elements, where loops walk parts of a label
        for b in path:
            if b.label in own and b.part and b.label is not None:
                share = share * extent(b, steps, count) / b.label.size
        if s.macs:
            results = sum(size * prod([tiles[id(b)] for b in path if b.label not in labels])
                          for size, labels in s.results)
            macs += np.rint(s.macs * times * share).astype(np.int64)
            time += target.time(s.macs * s.op.slow * times * share * _price(p, steps, target), results * share, calls)
        else:
            time += target.time(0, s.elements * times * share, calls, s.op.effort)
    return macs, np.rint(time).astype(np.int64)


def _price(p: Placed, steps: Steps, target: Target) -> Numbers:
    """What a multiply-accumulate takes in the tiles of a product."""
    s = p.statement
    if not s.grain:
        return 1.0
    walked: list[Extent] = []
    for a in s.grain:
        inside = [b for b in p.path if a.label is not None and b.label is a.label]
        outer = [a.size, *(np.minimum(a.size, steps[id(b)] * a.factor) for b in inside)]
        walked.append((outer[-2] if inside else a.size, outer[-1]))
    return target.product(*walked)
