"""Arena placement by CP-SAT: rectangles of fixed place in time, free in memory, that may not overlap."""

from __future__ import annotations

from collections.abc import Sequence

from ortools.sat.python import cp_model

from compilation.memory.search import Outcome, Span


def solve(spans: Sequence[Span], ceiling: int, conflicts: int, seconds: float) -> Outcome:
    """A placement of at most `ceiling` bytes. Limits: conflicts, which keep the answer repeatable (CP-SAT's own
    deterministic time hardly counts what this constraint costs), and seconds on the clock."""
    if any(s.size > ceiling for s in spans):
        return Outcome(None, True)
    model = cp_model.CpModel()
    starts = [model.new_int_var(0, ceiling - s.size, "") for s in spans]
    times = [model.new_fixed_size_interval_var(s.lower, s.upper - s.lower, "") for s in spans]
    bytes_ = [model.new_fixed_size_interval_var(at, s.size, "") for at, s in zip(starts, spans, strict=True)]
    model.add_no_overlap_2d(times, bytes_)
    solver = cp_model.CpSolver()
    solver.parameters.max_number_of_conflicts = conflicts
    solver.parameters.max_time_in_seconds = max(seconds, 0.0)
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    status = solver.solve(model)
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Outcome([solver.value(at) for at in starts], False)
    return Outcome(None, status == cp_model.INFEASIBLE)
