"""The Pareto front: nothing on it is beaten, nothing off it is missing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compilation.frontier import Point, pareto_front, points
from compilation.pipeline import Compiler
from tests.compilation.models import IMAGE
from tests.compilation.test_gradients import vit

SMALL = st.integers(1, 6)


@given(st.lists(st.builds(Point, SMALL, SMALL, SMALL, st.just("p")), min_size=1, max_size=20))
def test_the_front_is_what_nothing_dominates(candidates: list[Point]) -> None:
    front = pareto_front(candidates)
    assert front
    assert not any(a.dominates(b) for a in candidates for b in front)
    assert all(any(a.dominates(p) or a == p for a in front) for p in candidates)


def test_a_plan_trades_memory_for_work() -> None:
    planner = Compiler(vit(depth=3), IMAGE).planner({"blocks.0.norm1.bias": "all", "head.bias": "all"})
    front = pareto_front(points(planner, 29, "biases"))
    assert len(front) >= 3
    assert [p.ram_bytes for p in front] == sorted(p.ram_bytes for p in front)
    assert [p.macs for p in front] == sorted((p.macs for p in front), reverse=True)
    assert front[-1].macs == planner.unconstrained().macs
