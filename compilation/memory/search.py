"""Branch and bound for arena placement, after Moffitt's MiniMalloc (ASPLOS 2023).

Time is cut into sections between which no buffer begins or ends. Buffers are placed from the bottom up, each as low as
those before it allow, in nondecreasing order of (offset, rank): every placement can be pushed down into this form, so
nothing is lost by searching no other. A branch is dropped when

- a section cannot hold what is still to come: lowest offset open to it + bytes to come > ceiling, or
- it leaves a gap that an unplaced buffer fits in: the same placement with that buffer in the gap is searched elsewhere.

When no unplaced buffer crosses between two sections, both sides are independent and solved one after the other.
Which rank (static order) leads to a placement soon is a matter of luck, so several take turns, each under a limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Rank = Callable[["_Box"], tuple[int, ...]]

PLACED = 1 << 60  # lowest offset of a buffer that is placed, or part of another subproblem


class Span(NamedTuple):
    """What the search sees of a buffer: half-open lifetime, size > 0."""

    lower: int
    upper: int
    size: int


class Outcome(NamedTuple):
    """offsets: one a buffer, or None. proved: offsets is None because no placement exists."""

    offsets: list[int] | None
    proved: bool


class _Box(NamedTuple):
    """A buffer with what the static orders sort by; first and last are sections, last exclusive."""

    number: int
    first: int
    last: int
    size: int
    width: int
    peak: int  # most bytes in any of its sections
    neighbours: int


RANKS: tuple[Rank, ...] = (
    lambda b: (-b.peak, -b.width, -b.size),
    lambda b: (b.first - b.last, -b.peak, -b.width * b.size),
    lambda b: (-b.peak, b.first - b.last, -b.width * b.size),
    lambda b: (-b.neighbours, -b.peak, -b.width * b.size),
    lambda b: (-b.peak, -b.width * b.size, -b.width),
)


class _State(NamedTuple):
    """A partial placement. lowest: per buffer, PLACED or the lowest offset left to it; to_come: per section, bytes
    unplaced; crossing: per border between sections, unplaced buffers across it; (offset, rank): the last placed."""

    lowest: Ints
    to_come: Ints
    crossing: Ints
    offset: int
    rank: int


class Search:
    """Placements of one set of buffers under any ceiling."""

    def __init__(self, spans: Sequence[Span]) -> None:
        times = sorted({t for s in spans for t in (s.lower, s.upper)})
        section = {t: n for n, t in enumerate(times)}
        first, last = (np.array([section[s[k]] for s in spans], dtype=np.int64) for k in (0, 1))
        size = np.array([s.size for s in spans], dtype=np.int64)
        live = _live(first, last, len(times) - 1)
        load = size @ live
        neighbours = _overlap(first, last).sum(axis=1)
        self.boxes = [_Box(n, int(a), int(b), s.size, s.upper - s.lower, int(load[a:b].max()), int(o))
                      for n, (s, a, b, o) in enumerate(zip(spans, first, last, neighbours, strict=True))]
        self.sections = len(times) - 1
        self.pairs = int(neighbours.sum()) // 2  # of buffers that live at once
        self._ranked: dict[int, _Ranked] = {}

    def run(self, ceiling: int, steps: int, deadline: float = float("inf")) -> Outcome:
        """Look for a placement of at most `ceiling` bytes: each static order may try `steps` placements of a buffer.
        deadline: of time.monotonic()."""
        for n, rank in enumerate(RANKS):
            if time.monotonic() > deadline:
                break
            if n not in self._ranked:
                self._ranked[n] = _Ranked(sorted(self.boxes, key=rank), self.sections)
            outcome = self._ranked[n].run(ceiling, steps, deadline)
            if outcome.offsets is not None or outcome.proved:
                return outcome
        return Outcome(None, False)


class _LimitError(Exception):
    """The steps or the time of a turn are used up."""


class _Ranked:
    """The search with one static order: a buffer's number is its rank."""

    def __init__(self, boxes: list[_Box], sections: int) -> None:
        self.boxes = boxes
        self.first = np.array([b.first for b in boxes], dtype=np.int64)
        last = np.array([b.last for b in boxes], dtype=np.int64)
        self.size = np.array([b.size for b in boxes], dtype=np.int64)
        self.live = _live(self.first, last, sections)
        self.neighbours = [np.flatnonzero(row) for row in _overlap(self.first, last)]
        members = [np.flatnonzero(column) for column in self.live.T]
        self.members = np.concatenate(members)  # buffers of section 0, of section 1, ...
        begin = np.concatenate([[0], np.cumsum([len(m) for m in members])])
        # Per buffer, the sections that placing it can change: its neighbours', with where their members stand.
        self.near: list[tuple[slice, Ints, Ints]] = []
        for n, others in enumerate(self.neighbours):
            a = min(int(self.first[others].min(initial=sections)), boxes[n].first)
            z = max(int(last[others].max(initial=0)), boxes[n].last)
            self.near.append((slice(a, z), self.members[begin[a]:begin[z]], begin[a:z] - begin[a]))

    def run(self, ceiling: int, steps: int, deadline: float) -> Outcome:
        self.ceiling, self.steps, self.deadline = ceiling, steps, deadline
        self.offsets = [0] * len(self.boxes)
        to_come = self.size @ self.live
        if not self.boxes or to_come.max() > ceiling:
            return Outcome(None, True) if self.boxes else Outcome([], False)
        crossing = (self.live[:, :-1] & self.live[:, 1:]).sum(axis=0)
        start = _State(np.zeros(len(self.boxes), dtype=np.int64), to_come, crossing, 0, -1)
        try:
            found = self._search(self._parts(start, 0, len(to_come)))
        except _LimitError:
            return Outcome(None, False)
        if not found:
            return Outcome(None, True)
        offsets = [0] * len(self.boxes)
        for box, offset in zip(self.boxes, self.offsets, strict=True):
            offsets[box.number] = offset
        return Outcome(offsets, False)

    def _search(self, parts: list[_State]) -> bool:
        """Depth first without recursion. A stack entry: the choices left at a node, and the independent parts still to
        solve below its present choice. A part without a choice fails the choice that it came from."""
        stack: list[tuple[Iterator[list[_State]], list[_State]]] = [(iter(()), parts)]
        while stack:
            choices, parts = stack[-1]
            if not parts:  # all below the present choice is placed
                stack.pop()
                continue
            choices = self._choices(parts.pop())
            while (below := next(choices, None)) is None:
                if not stack:
                    return False
                choices, _ = stack.pop()
            stack.append((choices, below))
        return True

    def _choices(self, state: _State) -> Iterator[list[_State]]:
        """The next buffer to place, best first: for each that stands the checks, the parts left to solve."""
        lowest, to_come, crossing, floor, rank = state
        gap_end = int((lowest + self.size).min())  # at or above it, a gap would be left that a buffer fits in
        open_ = np.flatnonzero((lowest >= floor) & (lowest < gap_end))
        order = open_[np.argsort(lowest[open_], kind="stable")].tolist()
        tried = set()
        for n in order:
            box, offset = self.boxes[n], int(lowest[n])
            if offset == floor and n < rank:
                continue
            twin = (offset, box.first, box.last, box.size)
            if twin in tried:
                continue
            tried.add(twin)
            self._count()
            left = to_come.copy()
            left[box.first:box.last] -= box.size
            raised = lowest.copy()
            raised[n] = PLACED
            others = self.neighbours[n]
            raised[others] = np.maximum(raised[others], offset + box.size)
            near, members, begin = self.near[n]
            lifted = np.minimum.reduceat(raised[members], begin) + left[near]
            if offset + left.max() > self.ceiling or (lifted * (left[near] > 0)).max() > self.ceiling:
                continue
            self.offsets[n] = offset
            across = crossing.copy()
            across[box.first:box.last - 1] -= 1
            yield self._parts(_State(raised, left, across, offset, n), box.first, box.last)

    def _count(self) -> None:
        self.steps -= 1
        if self.steps < 0 or (self.steps % 256 == 0 and time.monotonic() > self.deadline):
            raise _LimitError

    def _parts(self, state: _State, first: int, last: int) -> list[_State]:
        """A state cut at the borders within [first, last) that nothing unplaced crosses any more."""
        cuts = np.flatnonzero(state.crossing[first:last - 1] == 0) + first + 1
        if not len(cuts):
            return [state] if state.to_come.any() else []
        parts = []
        for a, z in zip([0, *cuts.tolist()], [*cuts.tolist(), len(state.to_come)], strict=True):
            to_come = np.zeros_like(state.to_come)
            to_come[a:z] = state.to_come[a:z]
            if to_come.any():
                lowest = np.where((self.first >= a) & (self.first < z), state.lowest, PLACED)
                parts.append(state._replace(lowest=lowest, to_come=to_come, offset=0, rank=-1))
        return parts[::-1]


def _live(first: Ints, last: Ints, sections: int) -> NDArray[np.bool_]:
    """[buffer, section]: does it live there?"""
    at = np.arange(sections)
    return (first[:, None] <= at) & (at < last[:, None])


def _overlap(first: Ints, last: Ints) -> NDArray[np.bool_]:
    """[buffer, buffer]: do both live at once? Not of one with itself."""
    both = (first[:, None] < last) & (first < last[:, None])
    np.fill_diagonal(both, False)
    return both
