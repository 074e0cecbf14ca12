"""Which activations are kept and which are computed again, and the training step that follows from it.

Room for a number of kept cuts is used as `passes/splits.py` finds it best. A segment whose gradients read tensors
inside it (`passes/chain.py`) is made once more right before them. The result is an ordinary Program: recomputation is
the same calls again, on new tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from compilation.passes.chain import Chain
from compilation.passes.splits import Splits, splits
from compilation.program import Call, Program

Names = dict[str, str]      # tensor of the Program -> the one that holds its value now, where that is another


@dataclass(frozen=True)
class Order:
    """How a step is ordered. slots: kept cuts, besides the cut `source` (0: the input; else the lowest needed cut).

    kept: the segment from which on everything is kept. stride: how many gradients in a row follow one recomputation
    between kept cuts. 2 keeps the input of the segment before while the gradient of the one behind it is made: one
    tensor more, but only then.
    """

    slots: int
    source: int
    kept: int
    stride: int = 1


@dataclass(frozen=True)
class Part:
    """Calls in a row, and the tensors that they work on where these are others than their own."""

    calls: Sequence[Call]
    names: Names


class Scheduler:
    """Orders the whole step. cost: estimated time of a call."""

    def __init__(self, program: Program, chain: Chain, cost: Callable[[Call], int]) -> None:
        self.base, self.chain = program, chain
        self.work = tuple(sum(map(cost, s.onward)) for s in chain.segments)

    def table(self, order: Order) -> Splits:
        return splits(self.work, self.chain.frozen, order.stride)

    def recomputed(self, order: Order) -> int:
        """Estimated time of making cuts again; what gradients read inside of segments is not counted."""
        return self.table(order).best(order.source, order.kept, order.slots, True)[0]

    def parts(self, order: Order) -> list[Part]:
        """The step in order of execution."""
        segments = self.chain.segments
        out = [Part(s.calls if k >= order.kept else s.once, {}) for k, s in enumerate(segments)]
        out += [Part(s.backward, {}) for s in reversed(segments[order.kept:])]
        _Walk(self, order, out).reverse(order.source, order.kept, order.slots, True, {})
        return out

    def emit(self, order: Order) -> Program:
        """The step as a Program."""
        program = self.base.copy()
        program.calls = []
        for part in self.parts(order):
            for old, new in part.names.items():
                if new not in program.tensors:
                    program.add(replace(self.base.tensors[old], name=new))
            program.calls += [c.renamed(part.names) for c in part.calls] if part.names else part.calls
        return program


class _Walk:
    """The way back through the segments that are not kept. `cuts`: cut -> the names of its tensors."""

    def __init__(self, scheduler: Scheduler, order: Order, out: list[Part]) -> None:
        self.segments, self.frozen = scheduler.chain.segments, scheduler.chain.frozen
        self.table, self.stride, self.out = scheduler.table(order), order.stride, out
        self.taken, self.again = scheduler.base.tensors, Counter[str]()

    def reverse(self, i: int, j: int, slots: int, first: bool, cuts: dict[int, Names]) -> None:
        """The gradients from cut j down to cut i."""
        if j <= self.frozen:
            return
        if j == i + 1:
            self._backward(i, cuts)
            return
        _, k = self.table.best(i, j, slots, first)
        if k:
            self.reverse(k, j, slots - 1, first, cuts if first else self._forward(i, k, cuts))
            self.reverse(i, k, slots, False, cuts)
            return
        for run in self.table.runs(i, j):
            on_hand = (first and run[-1] == j - 1) or run[-1] == i
            inner = cuts if on_hand else self._forward(i, run[-1], cuts)
            for segment in reversed(run):
                self._backward(segment, inner)

    def _backward(self, k: int, cuts: dict[int, Names]) -> None:
        segment, names = self.segments[k], cuts.get(k, {})
        if segment.inner:
            names = self._run(segment.inner, names)
        self.out.append(Part(segment.backward, names))

    def _forward(self, i: int, k: int, cuts: dict[int, Names]) -> dict[int, Names]:
        """Forward again from cut i to cut k, on new tensors."""
        made, names = dict(cuts), cuts.get(i, {})
        for n in range(i, k):
            names = self._run(self.segments[n].onward, names)
            names = made[n + 1] = {t: names[t] for t in self.segments[n + 1].start if t in names}
        return made

    def _run(self, calls: Sequence[Call], names: Names) -> Names:
        """Emit these calls on new results; the names after it."""
        names = dict(names)
        for c in calls:
            for t in c.outputs.values():
                names[t] = self._fresh(t)
        self.out.append(Part(calls, names))
        return names

    def _fresh(self, tensor: str) -> str:
        while True:
            self.again[tensor] += 1
            n = self.again[tensor]
            name = f"{tensor}.again.{n}" if n > 1 else f"{tensor}.again"
            if name not in self.taken:
                return name
