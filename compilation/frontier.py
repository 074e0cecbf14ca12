"""The Pareto front of what can be had: RAM against multiply-accumulates against trained parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from compilation.scheduling import Planner


@dataclass(frozen=True)
class Point:
    """One plan under one schedule: bytes of RAM, multiply-accumulates a step, parameters trained."""

    ram_bytes: int
    macs: int
    trained_parameters: int
    label: str
    chosen: bool = False

    def dominates(self, other: Point) -> bool:
        """No worse in all three, and better in one."""
        mine = (self.ram_bytes, self.macs, -self.trained_parameters)
        theirs = (other.ram_bytes, other.macs, -other.trained_parameters)
        return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


def points(planner: Planner, trained_parameters: int, label: str, count: int = 6) -> Iterator[Point]:
    """Schedules of one plan, from its smallest RAM to no recomputation, in `count` even ratios of RAM."""
    least, most = planner.smallest(), planner.unconstrained()
    yield Point(least.ram, least.macs, trained_parameters, label)
    ratio = (most.ram / least.ram) ** (1.0 / count)
    for step in range(1, count):
        if schedule := planner.fastest(int(least.ram * ratio ** step)):
            yield Point(schedule.ram, schedule.macs, trained_parameters, label)
    yield Point(most.ram, most.macs, trained_parameters, label)


def pareto_front(candidates: Iterable[Point]) -> list[Point]:
    """The points that no other point dominates, by RAM; chosen points are always kept."""
    found = sorted(set(candidates), key=lambda p: (p.ram_bytes, p.macs, -p.trained_parameters, not p.chosen))
    return [p for p in found if p.chosen or not any(q.dominates(p) for q in found)]
