"""The search for the fastest schedule that fits: how much is streamed, how many checkpoints, which kernel settings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

from compilation.cost import call_macs, fixed_bytes, total_macs
from compilation.memory.liveness import lifetimes, live_bytes
from compilation.passes.checkpoints import Chain, Scheduler, cut_chain
from compilation.passes.form import form_regions
from compilation.passes.narrow import narrow_rows
from compilation.passes.storage import share_storage, tune
from compilation.passes.streams import form_streams
from compilation.passes.training import (
    Selection,
    add_loss,
    add_updates,
    apply_plan,
    check_plan,
    make_matrices,
    slice_early,
    trained_names,
)
from compilation.passes.wrap import wrap_leaves
from compilation.passes.zeros import drop_zeros
from compilation.pieces import names
from compilation.program import Program
from compilation.tvm_adapter import differentiate, lower_tail
from compilation.verify import verify

STRIDES = (1, 2)    # gradients in a row after one recomputation (see passes/checkpoints.py)


@dataclass(frozen=True)
class Schedule:
    """One executable ordering of a training step, not yet placed. `Compiler.finish` places a copy of `program`."""

    program: Program
    peak: int                 # arena bytes live at the worst call
    fixed: int                # RAM outside the arena
    macs: int
    streamed: str             # how the chains are computed, for people
    checkpoints: int
    source: int               # the lowest cut that is kept (see passes/checkpoints.py)

    @property
    def ram(self) -> int:
        return self.peak + self.fixed


@dataclass
class Structure:
    """A training step before scheduling: forward, backward, cut into segments."""

    program: Program
    chain: Chain
    label: str
    cache: dict[tuple[int, int, int], Program] = field(default_factory=dict)

    def emit(self, slots: int, source: int, stride: int) -> Program:
        """The ordered step for a number of checkpoints; storage shared, not tuned."""
        key = (slots, source, stride)
        if key not in self.cache:
            program = self.scheduler.emit(slots, source, stride)
            slice_early(program)
            wrap_leaves(program)
            share_storage(program)
            verify(program, f"checkpoints({slots})")
            self.cache[key] = program
        return self.cache[key].copy()

    @property
    def scheduler(self) -> Scheduler:
        if not hasattr(self, "_scheduler"):
            self._scheduler = Scheduler(self.program, self.chain, lambda c: call_macs(self.program, c))
        return self._scheduler


class Planner:
    """Schedules of one model under one update plan.

    forward: the imported Program (never changed). plan: parameter -> selection. momentum: of the SGD on the device.
    zero: the parameters that are all zero; what they make is left out where the plan does not train them.
    regions: form regions of a Program that was imported as leaves; else the streamed operations.
    """

    def __init__(self, forward: Program, plan: dict[str, Selection], shapes: dict[str, tuple[int, ...]],
                 momentum: float = 0.0, zero: frozenset[str] = frozenset(), regions: bool = False) -> None:
        self.forward = drop_zeros(forward, frozenset(names(forward, zero)), names(forward, trained_names(plan)))
        self.plan, self.shapes, self.momentum = plan, shapes, momentum
        self.form = form_regions if regions else form_streams
        if regions:                         # a region of one row is another than that of them all
            self.forward = self.forward.copy()
            narrow_rows(self.forward)
        self.chains = self.form(self.forward.copy())
        self._structures: dict[int, Structure] = {}
        self._unconstrained: Schedule | None = None

    def structure(self, whole: int) -> Structure:
        """The training step with the last `whole` chains computed as whole tensors and all others streamed."""
        if whole not in self._structures:
            self._structures[whole] = self._build(whole)
        return self._structures[whole]

    def _build(self, whole: int) -> Structure:
        program = self.forward.copy()
        program.momentum = self.momentum
        self.form(program, set(range(self.chains - whole)))
        narrow_rows(program)
        add_loss(program)
        make_matrices(program)
        verify(program, "forward")
        plan = check_plan(program, self.plan, self.shapes)
        forward = len(program.calls)
        backward, gradients = differentiate(program, list(plan)) if plan else ([], {})
        apply_plan(program, {n: s for n, s in plan.items() if n in gradients}, self.momentum)
        add_updates(program, backward, gradients)
        lower_tail(program)
        verify(program, "differentiate")
        chain = cut_chain(program, program.calls[:forward], program.calls[forward:])
        label = "all streamed" if whole == 0 else f"last {whole} of {self.chains} chains whole, others streamed"
        return Structure(program, chain, label)

    def at(self, whole: int, slots: int, source: int, arena: int | None, stride: int = 1) -> Schedule:
        """One schedule, its kernels tuned for an arena of `arena` bytes (None: as fast as possible)."""
        structure = self.structure(whole)
        program = structure.emit(slots, source, stride)
        peak = tune(program, arena)
        program.predict_calls = next(i for i, c in enumerate(program.calls) if c.op == "cross_entropy")
        return Schedule(program, peak, fixed_bytes(program), total_macs(program), structure.label,
                        slots, source)

    def _sources(self, structure: Structure) -> list[int]:
        return sorted({0, structure.chain.frozen} - {len(structure.chain.segments)}) or [0]

    def _max_slots(self, structure: Structure) -> int:
        return max(0, structure.chain.kept - structure.chain.frozen)

    def smallest(self, max_recompute: float | None = None) -> Schedule:
        """The schedule with the least RAM.

        max_recompute: of the schedules with at most so many times the multiply-accumulates of no recomputation
        (of all, when none of them is that fast).
        """
        structure = self.structure(0)
        least = min((self.at(0, 0, source, 0) for source in self._sources(structure)), key=lambda s: s.ram)
        least = self.at(0, 0, least.source, least.peak)     # the same RAM, as fast as it allows
        if max_recompute is None:
            return least
        limit = int(max_recompute * self.unconstrained().macs)
        found: Schedule | None = None
        for source, stride in product(self._sources(structure), STRIDES):
            for slots in range(self._max_slots(structure) + 1):
                fits = self._least_arena(slots, source, stride, limit, None if found is None else found.peak)
                if fits and (found is None or fits.ram < found.ram):
                    found = fits
                elif found is not None:
                    break
        return found or least

    def _least_arena(self, slots: int, source: int, stride: int, limit: int, below: int | None) -> Schedule | None:
        """With so many checkpoints, the smallest arena within `limit` multiply-accumulates (to 1 %), by bisection."""
        best = self.at(0, slots, source, None, stride)
        low = self.at(0, slots, source, 0, stride).peak
        if best.macs > limit or (below is not None and low >= below):
            return None
        high = best.peak
        while high - low > low // 100:
            middle = (low + high) // 2
            schedule = self.at(0, slots, source, middle, stride)
            if schedule.macs <= limit:
                best, high = schedule, middle
            else:
                low = middle
        return best

    def unconstrained(self) -> Schedule:
        """No recomputation at all: every chain whole, everything kept, fastest settings."""
        if self._unconstrained is None:
            structure = self.structure(self.chains)
            lowest = structure.chain.frozen if structure.chain.frozen < len(structure.chain.segments) else 0
            self._unconstrained = self.at(self.chains, self._max_slots(structure), lowest, None)
        return self._unconstrained

    def fastest(self, budget: int) -> Schedule | None:
        """The schedule with the fewest multiply-accumulates within `budget` bytes of RAM; None if none fits."""
        best: Schedule | None = None
        for schedule in self.explore(budget):
            if schedule.ram <= budget and (best is None or (schedule.macs, schedule.ram) < (best.macs, best.ram)):
                best = schedule
        return best

    def explore(self, budget: int) -> Iterator[Schedule]:
        """Schedules worth comparing under a budget: for each way of streaming, the most checkpoints that fit."""
        for whole in self._whole_options():
            structure = self.structure(whole)
            room = budget - fixed_bytes(structure.program)
            fitted = False
            for source, stride in product(self._sources(structure), STRIDES):
                low, high, found = 0, self._max_slots(structure), None
                while low <= high:
                    slots = (low + high) // 2
                    schedule = self.at(whole, slots, source, room, stride)
                    if schedule.peak <= room:
                        found, low = schedule, slots + 1
                    else:
                        high = slots - 1
                if found:
                    fitted = True
                    yield found
                    for fewer in range(found.checkpoints - 1, max(-1, found.checkpoints - 3), -1):
                        yield self.at(whole, fewer, source, room, stride)
            if not fitted:
                return                     # more whole chains need more memory still

    def _whole_options(self) -> list[int]:
        steps = {0, self.chains} | {2 ** k for k in range(int(math.log2(max(self.chains, 1))) + 1)}
        return sorted(s for s in steps if s <= self.chains)


def binding(program: Program) -> str:
    """The call at which most bytes live, and what they are: for messages."""
    life = lifetimes(program)
    live = live_bytes(program, life)
    at = max(range(len(live)), key=live.__getitem__)
    call = program.calls[at]
    tensors = sorted(((program.tensors[n].bytes, n) for n, (a, b) in life.items() if a <= at < b), reverse=True)
    listed = ", ".join(f"{n} {b:,}" for b, n in tensors[:6])
    return f"{call.op} of {call.where or 'the model'} ({live[at]:,} bytes live: {listed})"

