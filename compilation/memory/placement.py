"""Arena placement: half-open lifetimes and sizes in, offsets out.

One interface, two solvers: a fast heuristic (best of several greedy orders, lowest fit), and CP-SAT for what the
heuristic leaves above the lower bound. Neither judges itself: `validate.check_placement` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ortools.sat.python import cp_model

from compilation.errors import PlacementError


@dataclass(frozen=True)
class Item:
    """A buffer: it lives during [lower, upper) and takes `size` bytes."""

    id: str
    lower: int
    upper: int
    size: int


@dataclass(frozen=True)
class Placement:
    """offsets: item id -> byte offset; height: bytes needed; bound: no placement can be lower."""

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


ORDERS: list[Callable[[Item], tuple[int, ...]]] = [
    lambda i: (-i.size, i.lower),
    lambda i: (-i.size * (i.upper - i.lower), i.lower),
    lambda i: (-(i.upper - i.lower), -i.size),
    lambda i: (i.lower, -i.size),
    lambda i: (-i.upper, -i.size),
]


def place(items: list[Item], capacity: int | None = None, limit_seconds: float = 50.0) -> Placement:
    """Place items as low as possible; stops at the lower bound.

    capacity: bytes that the result must not exceed. Raises PlacementError when no placement within the capacity
    was found (saying whether that was proved).
    """
    start = time.monotonic()
    bound = bound_of(items)
    if capacity is not None and bound > capacity:
        raise PlacementError(f"{bound} bytes live at once, more than the capacity of {capacity}: no placement exists")
    best, solver = _greedy(items, bound), "greedy"
    height = _height(items, best)
    if height > bound:
        exact = _solve(items, bound, height, capacity, limit_seconds)
        if exact is not None and _height(items, exact) < height:
            best, height, solver = exact, _height(items, exact), "cp-sat"
    if capacity is not None and height > capacity:
        raise PlacementError(f"no placement within {capacity} bytes was found in {limit_seconds:.0f} s: "
                             f"the lowest takes {height}, the bound is {bound}")
    return Placement(best, height, bound, time.monotonic() - start, solver)


def _height(items: list[Item], offsets: dict[str, int]) -> int:
    return max((offsets[i.id] + i.size for i in items), default=0)


def _greedy(items: list[Item], bound: int) -> dict[str, int]:
    best: dict[str, int] = {}
    best_height = -1
    for order in ORDERS:
        offsets = _lowest_fit(sorted(items, key=order))
        height = _height(items, offsets)
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


def _solve(items: list[Item], bound: int, height: int, capacity: int | None, limit: float) -> dict[str, int] | None:
    """Exact placement by CP-SAT: first at the bound (or the capacity), as a satisfaction problem."""
    target = bound
    for ceiling in dict.fromkeys((target, capacity if capacity is not None and capacity < height else height - 1)):
        found = _cp_sat(items, ceiling, minimise=ceiling == height - 1, limit=limit)
        if found is not None:
            return found
    return None


def _cp_sat(items: list[Item], ceiling: int, minimise: bool, limit: float) -> dict[str, int] | None:
    model = cp_model.CpModel()
    starts, x_intervals, y_intervals = {}, [], []
    for i in items:
        if i.size > ceiling:
            return None
        starts[i.id] = model.new_int_var(0, ceiling - i.size, i.id)
        x_intervals.append(model.new_fixed_size_interval_var(i.lower, i.upper - i.lower, f"t{i.id}"))
        y_intervals.append(model.new_fixed_size_interval_var(starts[i.id], i.size, f"y{i.id}"))
    model.add_no_overlap_2d(x_intervals, y_intervals)
    if minimise:
        top = model.new_int_var(0, ceiling, "height")
        for i in items:
            model.add(starts[i.id] + i.size <= top)
        model.minimize(top)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit / 2
    solver.parameters.num_workers = 2
    solver.parameters.random_seed = 1
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return {i.id: solver.value(starts[i.id]) for i in items}
