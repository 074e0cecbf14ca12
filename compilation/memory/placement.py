"""Arena placement: half-open lifetimes and sizes in, offsets out.

One interface, three solvers, each called only for what the one before leaves above the lower bound: greedy (lowest fit
in several orders), branch and bound (`search`), CP-SAT (`exact`). The latter two are complementary and take turns
under a growing limit. None judges itself: `validate.check_placement` does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from compilation.errors import PlacementError
from compilation.memory.search import Outcome, Search, Span


@dataclass(frozen=True)
class Item:
    """A buffer: it lives during [lower, upper) and takes `size` bytes."""

    id: str
    lower: int
    upper: int
    size: int


@dataclass(frozen=True)
class Placement:
    """offsets: item id -> byte offset; height: bytes needed; bound: no placement can be lower; solver: whose it is."""

    offsets: dict[str, int]
    height: int
    bound: int
    seconds: float
    solver: str

    @property
    def gap(self) -> float:
        return self.height / self.bound - 1.0 if self.bound else 0.0


def bound_of(items: list[Item]) -> int:
    """The most bytes that live at once."""
    events = sorted([(i.lower, i.size) for i in items] + [(i.upper, -i.size) for i in items])
    total = best = 0
    for _, change in events:
        total += change
        best = max(best, total)
    return best


def height_of(items: list[Item], offsets: dict[str, int]) -> int:
    return max((offsets[i.id] + i.size for i in items), default=0)


ORDERS: list[Callable[[Item], tuple[int, ...]]] = [
    lambda i: (-i.size, i.lower),
    lambda i: (-i.size * (i.upper - i.lower), i.lower),
    lambda i: (-(i.upper - i.lower), -i.size),
    lambda i: (i.lower, -i.size),
    lambda i: (-i.upper, -i.size),
]
BRIEF = 2  # rounds of the solvers that a height is worth when no capacity asks for it
STEPS, GROWTH = 4, 4  # search: placements tried in the first round, per item and static order; factor a round
WORK = 400_000_000  # CP-SAT: conflicts x (pairs that live at once)^2, what they cost, in the first round; doubled


def place(items: list[Item], capacity: int | None = None, limit_seconds: float = 50.0) -> Placement:
    """Place items as low as possible; stops at the lower bound.

    capacity: bytes that the result must not exceed; after a brief try for the bound, any placement within it is good
    enough. Raises PlacementError when none was found (saying whether that was proved). Without a capacity the height
    is bisected, a brief try each. The answer is the same every time, unless limit_seconds cuts it short.
    """
    start = time.monotonic()
    task = _Task(items, start + limit_seconds)
    if capacity is not None and task.bound > capacity:
        raise PlacementError(f"{task.bound} bytes live at once, more than the capacity of {capacity}: "
                             "no placement exists")
    task.attempt(task.bound, BRIEF)
    if capacity is None:
        task.narrow()
    elif task.height > capacity:
        task.attempt(capacity)
        if task.bound > capacity:
            raise PlacementError(f"no placement within {capacity} bytes exists: every one was ruled out; "
                                 f"the lowest found takes {task.height}")
        if task.height > capacity:
            raise PlacementError(f"no placement within {capacity} bytes was found in {limit_seconds:.0f} s: "
                                 f"the lowest takes {task.height}, the bound is {task.bound}")
    return Placement(task.offsets, task.height, task.bound, time.monotonic() - start, task.solver)


class _Task:
    """The best placement and the best bound so far. Solvers see sizes divided by their greatest common divisor."""

    def __init__(self, items: list[Item], deadline: float) -> None:
        self.items, self.deadline = items, deadline
        self.bound = bound_of(items)
        self.offsets, self.solver = _greedy(items, self.bound), "greedy"
        self.height = height_of(items, self.offsets)
        self.solid = [i for i in items if i.size]
        self.unit = math.gcd(*(i.size for i in items)) or 1
        self.spans = [Span(i.lower, i.upper, i.size // self.unit) for i in self.solid]
        self.turns: dict[int, int] = {}  # ceiling -> rounds spent on it

    def attempt(self, ceiling: int, rounds: int | None = None) -> None:
        """Try for at most `ceiling` bytes, unless that is reached or ruled out: the solvers take turns."""
        while self.height > ceiling >= self.bound and time.monotonic() < self.deadline:
            turn = self.turns.get(ceiling, 0)
            if turn == rounds:
                break
            self.turns[ceiling] = turn + 1
            now = time.monotonic()
            half = now + (self.deadline - now) / 2  # so that the other solver is heard, too
            steps = STEPS * GROWTH ** turn * len(self.spans)
            if self._take(ceiling, "search", self._search.run(ceiling // self.unit, steps, half)):
                continue
            conflicts = WORK * 2 ** turn // max(1, self._search.pairs) ** 2
            if conflicts:
                from compilation.memory.exact import solve  # slow to import, and seldom needed

                left = self.deadline - time.monotonic()
                self._take(ceiling, "cp-sat", solve(self.spans, ceiling // self.unit, conflicts, left))

    def narrow(self) -> None:
        """Bisect between the bound and the height; a height not reached briefly counts as out of reach."""
        low = self.bound
        while low < self.height and time.monotonic() < self.deadline:
            middle = (low + self.height) // 2
            self.attempt(middle, BRIEF)
            if self.height > middle:
                low = middle + 1

    @cached_property
    def _search(self) -> Search:
        return Search(self.spans)

    def _take(self, ceiling: int, solver: str, outcome: Outcome) -> bool:
        """Keep what a solver found or proved; did it do either?"""
        if outcome.offsets is not None:
            self.offsets = dict.fromkeys((i.id for i in self.items), 0)
            self.offsets |= {i.id: at * self.unit for i, at in zip(self.solid, outcome.offsets, strict=True)}
            self.height, self.solver = height_of(self.items, self.offsets), solver
        elif outcome.proved:
            self.bound = (ceiling // self.unit + 1) * self.unit
        return outcome.offsets is not None or outcome.proved


def _greedy(items: list[Item], bound: int) -> dict[str, int]:
    best: dict[str, int] = {}
    best_height = -1
    for order in ORDERS:
        offsets = _lowest_fit(sorted(items, key=order))
        height = height_of(items, offsets)
        if best_height < 0 or height < best_height:
            best, best_height = offsets, height
        if best_height <= bound:
            break
    return best


def _lowest_fit(items: list[Item]) -> dict[str, int]:
    placed: list[tuple[int, Item]] = []
    offsets: dict[str, int] = {}
    for item in items:
        busy = sorted((at, at + other.size) for at, other in placed
                      if other.lower < item.upper and item.lower < other.upper)
        offset = 0
        for low, high in busy:
            if low - offset >= item.size:
                break
            offset = max(offset, high)
        offsets[item.id] = offset
        placed.append((offset, item))
    return offsets
