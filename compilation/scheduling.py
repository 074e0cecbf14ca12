"""The search for the fastest schedule that fits: how much is streamed, how many checkpoints, which kernel settings."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product

from compilation.cost import call_time, fixed_bytes, total_macs, total_time
from compilation.memory.liveness import lifetimes, live_bytes
from compilation.passes.chain import Chain, cut_chain
from compilation.passes.checkpoints import Order, Scheduler
from compilation.passes.form import form_regions
from compilation.passes.narrow import narrow_rows
from compilation.passes.products import order_products, shrink_factors
from compilation.passes.reassociate import is_projected, project_queries
from compilation.passes.shifts import drop_unread, unfelt
from compilation.passes.storage import share_storage, tune
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
from compilation.passes.weigh import Scales, Step
from compilation.passes.wrap import wrap_leaves
from compilation.passes.zeros import drop_zeros
from compilation.pieces import names
from compilation.program import Call, Program
from compilation.target import CORTEX_M, Target
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
    time: int                 # estimated, in multiply-accumulates of full tiles
    streamed: str             # how the chains are computed, for people
    order: Order

    @property
    def ram(self) -> int:
        return self.peak + self.fixed

    @property
    def checkpoints(self) -> int:
        return self.order.slots

    @property
    def source(self) -> int:
        return self.order.source


@dataclass(frozen=True)
class Weighed:
    """What a schedule would take, its Program not made. whole: chains computed as whole tensors; arena: what its kernels
    are tuned for."""

    whole: int
    order: Order
    arena: int | None
    peak: int
    macs: int
    time: int
    ram: int


class Structure:
    """A training step before scheduling: forward, backward, cut into segments."""

    def __init__(self, program: Program, chain: Chain, label: str, target: Target) -> None:
        self.program, self.chain, self.label = program, chain, label
        self.scheduler = Scheduler(program, chain, lambda c: call_time(program, c, target))
        self.scales = Scales(program, target)
        self.fixed = fixed_bytes(program)
        self.floor = max((self.scales.floor((*s.inner, *s.backward)) for s in chain.segments), default=0)
        self._weighed: dict[tuple[Order, int | None], tuple[int, int, int]] = {}
        self._steps: tuple[Order | None, list[Step]] = (None, [])
        self._anyway: dict[int, int] = {}       # by the segment from which on all is kept
        onward = [c for s in chain.segments for c in s.onward]
        ratios = [self.scales.least((c,)) / time for c in onward if (time := call_time(program, c, target))]
        self._ratio = min(ratios, default=1.0)

    def emit(self, order: Order) -> Program:
        """The ordered step; storage shared, not tuned."""
        program = self.scheduler.emit(order)
        share_storage(program)
        verify(program, f"checkpoints({order.slots})")
        return program

    def weigh(self, order: Order, arena: int | None) -> tuple[int, int, int]:
        """(peak bytes of the arena, multiply-accumulates, estimated time) of an order, tuned for so large an arena."""
        if (order, arena) not in self._weighed:
            if self._steps[0] != order:
                self._steps = order, self.scales.steps(self.scheduler.parts(order))
            self._weighed[order, arena] = self.scales.weigh(self._steps[1], arena)
        return self._weighed[order, arena]

    def least_time(self, order: Order) -> int:
        """No less estimated time is possible with this order, whatever the kernel settings."""
        if order.kept not in self._anyway:
            once = [s.calls if k >= order.kept else (*s.once, *(s.inner if s.backward else ()))
                    for k, s in enumerate(self.chain.segments)]
            self._anyway[order.kept] = sum(map(self.scales.least, once)) + sum(
                self.scales.least(s.backward) for s in self.chain.segments)
        return self._anyway[order.kept] + int(self.scheduler.recomputed(order) * self._ratio)

    def sources(self) -> list[int]:
        """The cuts that recomputation may start from."""
        return sorted({0, self.chain.frozen} - {len(self.chain.segments)}) or [0]

    def max_slots(self, kept: int | None = None) -> int:
        return max(0, (self.chain.kept if kept is None else kept) - self.chain.frozen)


class Planner:
    """Schedules of one model under one update plan.

    forward: the imported Program (never changed). plan: parameter -> selection. momentum: of the SGD on the device.
    zero: the parameters that are all zero; what they make is left out where the plan does not train them.
    target: the core whose time is minimised. project: single queries instead of their keys and values; where that costs
    memory, `plain` does not.
    """

    def __init__(self, forward: Program, plan: dict[str, Selection], shapes: dict[str, tuple[int, ...]],
                 momentum: float = 0.0, zero: frozenset[str] = frozenset(), target: Target = CORTEX_M,
                 project: bool = True) -> None:
        self.forward = drop_zeros(forward, frozenset(names(forward, zero)), names(forward, trained_names(plan))).copy()
        self.plan, self.shapes, self.momentum, self.target = plan, shapes, momentum, target
        narrow_rows(self.forward)           # first: a region of one row is another than that of them all
        order_products(self.forward)
        shrink_factors(self.forward)
        self.unfelt = unfelt(self.forward)
        self._plain: Callable[[], Planner] | None = None
        if project and (projected := project_queries(self.forward)) is not self.forward:
            self.forward = projected
            self._plain = partial(Planner, forward, plan, shapes, momentum, zero, target, project=False)
        self.chains = form_regions(self.forward.copy())
        self._structures: dict[int, Structure] = {}
        self._unconstrained: Schedule | None = None

    @cached_property
    def plain(self) -> Planner | None:
        """The schedules without projected queries; None where there is none."""
        return self._plain() if self._plain else None

    def structure(self, whole: int) -> Structure:
        """The training step with the last `whole` chains computed as whole tensors and all others streamed."""
        if whole not in self._structures:
            self._structures[whole] = self._build(whole)
        return self._structures[whole]

    def _build(self, whole: int) -> Structure:
        program = self.forward.copy()
        program.momentum = self.momentum
        form_regions(program, set(range(self.chains - whole)))
        add_loss(program)
        make_matrices(program)
        verify(program, "forward")
        plan = {n: s for n, s in check_plan(program, self.plan, self.shapes).items() if n not in self.unfelt}
        drop_unread(program, self.unfelt)
        backward, gradients = differentiate(program, list(plan)) if plan else ([], {})
        apply_plan(program, {n: s for n, s in plan.items() if n in gradients}, self.momentum)
        add_updates(program, backward, gradients)
        lower_tail(program)
        slice_early(program)
        wrap_leaves(program)
        verify(program, "differentiate")
        forward = 1 + next(i for i, c in enumerate(program.calls) if program.loss in c.outputs.values())
        chain = cut_chain(program, program.calls[:forward], program.calls[forward:])
        label = "all streamed" if whole == 0 else f"last {whole} of {self.chains} chains whole, others streamed"
        return Structure(program, chain, label, self.target)

    def at(self, whole: int, slots: int, source: int, arena: int | None, stride: int = 1,
           kept: int | None = None) -> Schedule:
        """One schedule, its kernels tuned for an arena of `arena` bytes (None: as fast as possible)."""
        kept = self.structure(whole).chain.kept if kept is None else kept
        return self._make(whole, Order(slots, source, kept, stride), arena)

    def _make(self, whole: int, order: Order, arena: int | None) -> Schedule:
        structure = self.structure(whole)
        program = structure.emit(order)
        peak = tune(program, arena, self.target)
        program.predict_calls = next(i for i, c in enumerate(program.calls) if c.op == "cross_entropy")
        return Schedule(program, peak, fixed_bytes(program), total_macs(program), total_time(program, self.target),
                        structure.label, order)

    def _weigh(self, whole: int, order: Order, arena: int | None) -> Weighed:
        structure = self.structure(whole)
        peak, macs, time = structure.weigh(order, arena)
        return Weighed(whole, order, arena, peak, macs, time, peak + structure.fixed)

    def smallest(self, max_recompute: float | None = None) -> Schedule:
        """The schedule with the least RAM.

        max_recompute: of the schedules with at most so many times the estimated time of no recomputation
        (of all, when none of them is that fast).
        """
        found = self._smallest(max_recompute)
        if self.plain and is_projected(found.program, binding_call(found.program)):
            found = min(found, self.plain.smallest(max_recompute), key=lambda s: s.ram)
        return found

    def _smallest(self, max_recompute: float | None) -> Schedule:
        structure = self.structure(0)
        starts = [(source, kept) for kept in structure.chain.kept_options() for source in structure.sources()]
        if max_recompute is not None:
            limit = int(max_recompute * self.unconstrained().time)
            found: Weighed | None = None
            for (source, kept), stride in product(starts, STRIDES):
                for slots in range(structure.max_slots(kept) + 1):
                    order = Order(slots, source, kept, stride)
                    if structure.least_time(order) > limit:
                        continue                # with more checkpoints less is made again
                    if found and self._weigh(0, order, 0).peak >= found.peak:
                        break                   # and more is kept
                    found = self._least_arena(order, limit, found) or found
            if found:
                return self._make(0, found.order, found.arena)
        least = min((self._weigh(0, Order(0, source, kept), 0) for source, kept in starts), key=lambda s: s.ram)
        return self._make(0, least.order, least.peak)       # the same RAM, as fast as it allows

    def _least_arena(self, order: Order, limit: int, below: Weighed | None) -> Weighed | None:
        """With this order, the smallest arena within `limit` of estimated time (to 0.01 %), by bisection; None where it
        is no smaller than that of `below`."""
        best = self._weigh(0, order, below.peak - 1 if below else None)
        if best.time > limit or (below and best.peak >= below.peak):
            return None
        least = self._weigh(0, order, 0)
        if least.time <= limit:
            return least
        low = least.peak
        while best.peak - low > low // 10000:
            middle = (low + best.peak) // 2
            schedule = self._weigh(0, order, middle)
            if schedule.time <= limit:
                best = schedule
            else:
                low = middle
        return best

    def unconstrained(self) -> Schedule:
        """No recomputation at all: every chain whole, everything kept, fastest settings."""
        if self._unconstrained is None:
            chain = self.structure(self.chains).chain
            frozen = min(chain.frozen, len(chain.segments) - 1)
            self._unconstrained = self.at(self.chains, self.structure(self.chains).max_slots(), frozen, None, kept=frozen)
        return self._unconstrained

    def fastest(self, budget: int) -> Schedule | None:
        """The schedule with the least estimated time within `budget` bytes of RAM; None if none fits."""
        best = self._explore(budget)
        if best:
            return self._make(best.whole, best.order, best.arena)
        return self.plain.fastest(budget) if self.plain else None

    def _explore(self, budget: int) -> Weighed | None:
        """For each way of streaming, of starting recomputation and of keeping the upper segments, the most checkpoints
        that fit, or a few less: of these the fastest one. What cannot be the best is not weighed."""
        best: Weighed | None = None
        for whole in self._whole_options():
            structure = self.structure(whole)
            room = budget - structure.fixed
            kept = structure.chain.kept
            if structure.floor > room or (whole and not any(
                    self._weigh(whole, Order(0, source, kept), room).peak <= room for source in structure.sources())):
                break                           # more whole chains need more memory still
            for source, stride in product(structure.sources(), STRIDES):
                for kept in structure.chain.kept_options():
                    found, fits = self._most_slots(whole, Order(0, source, kept, stride), room, best)
                    best = min([w for w in (best, *found) if w], key=lambda w: (w.time, w.ram), default=None)
                    if not fits:
                        break                   # so does keeping more
        return best

    def _most_slots(self, whole: int, order: Order, room: int, best: Weighed | None) -> tuple[list[Weighed], bool]:
        """The orders with the most checkpoints that fit, of those that may be better than `best`; and whether this kind
        of order may fit at all."""
        structure = self.structure(whole)
        high = structure.max_slots(order.kept)
        if best and structure.least_time(replace(order, slots=high)) > best.time:
            return [], True
        least = first(high, lambda n: best is None or structure.least_time(replace(order, slots=n)) <= best.time)
        most = first(high + 1, lambda n: self._weigh(whole, replace(order, slots=n), room).peak > room, least) - 1
        if most < least:
            return [], least > 0
        found = [self._weigh(whole, replace(order, slots=n), room) for n in range(most, max(least, most - 2) - 1, -1)]
        return [w for w in found if w.peak <= room], True

    def _whole_options(self) -> list[int]:
        steps = {0, self.chains} | {2 ** k for k in range(int(math.log2(max(self.chains, 1))) + 1)}
        return sorted(s for s in steps if s <= self.chains)


def first(end: int, holds: Callable[[int], bool], start: int = 0) -> int:
    """The first number from `start` for which a statement holds that stays true from there on; `end` if none below it."""
    low, step = start, 1
    while (at := low + step - 1) < end and not holds(at):
        low, step = at + 1, 2 * step
    return bisect_left(range(min(at, end)), True, low, key=holds)


def binding_call(program: Program) -> Call:
    """The call at which most bytes live."""
    live = live_bytes(program, lifetimes(program))
    return program.calls[max(range(len(live)), key=live.__getitem__)]


def binding(program: Program) -> str:
    """That call, and what lives there: for messages."""
    life, call = lifetimes(program), binding_call(program)
    live, at = live_bytes(program, life), program.position(call)
    tensors = sorted(((program.tensors[n].bytes, n) for n, (a, b) in life.items() if a <= at < b), reverse=True)
    listed = ", ".join(f"{n} {b:,}" for b, n in tensors[:6])
    made_of = f" ({program.chain(call)})" if call.op in program.regions else ""
    return f"{call.op}{made_of} of {call.where or 'the model'} ({live[at]:,} bytes live: {listed})"

