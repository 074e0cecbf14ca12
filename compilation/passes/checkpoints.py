"""Which activations are kept and which are computed again: optimal checkpointing of the forward chain.

A cut is a point of the forward pass where one tensor carries everything onward. Between the cuts lie segments;
the gradients of a segment read its input. With room for `slots` kept cuts, the cheapest order of keeping and
recomputing is found by dynamic programming (Griewank and Walther, "Revolve", 2000, for unequal segment costs).
The result is an ordinary Program: recomputation is the same calls again, on new tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from compilation.passes.rewrite import fresh, parameter_views
from compilation.program import Call, Program, Role, Tensor


@dataclass
class Chain:
    """The forward pass cut into segments, and the backward calls of each.

    cuts[k] is the tensor between segment k and k + 1; cuts[0] is the model's input. segments[k] makes cuts[k + 1].
    backward[k] are the gradient calls of segments[k]. Segments below `frozen` have none. Segments from `kept` on are
    never recomputed: they have internal tensors that their gradients read, or their cuts are small.
    """

    cuts: list[str]
    segments: list[list[Call]]
    backward: list[list[Call]]
    frozen: int
    kept: int       # from this segment on everything the backward pass reads is simply kept


def cut_chain(program: Program, forward: list[Call], backward: list[Call]) -> Chain:
    """Find the cuts of a training Program whose calls are `forward` then `backward`."""
    roles = {n: t.role for n, t in program.tensors.items()}
    last_read = {t: i for i, c in enumerate(forward) for t in c.inputs.values()}
    first_input = next(t for c in forward for t in c.inputs.values() if roles.get(t) is Role.INPUT)
    cuts: list[str] = [first_input]
    segments: list[list[Call]] = []
    current: list[Call] = []
    live: set[str] = set()
    for i, c in enumerate(forward):
        current.append(c)
        live |= {t for t in c.outputs.values() if roles[t] is Role.ACTIVATION}
        live = {t for t in live if last_read.get(t, -1) > i}
        if (len(live) == 1 and last_read[first_input] <= i) or i == len(forward) - 1:
            cuts.append(next(iter(live), program.loss))
            segments.append(current)
            current = []
    owner = {t: k for k, seg in enumerate(segments) for c in seg for t in c.outputs.values()}
    owner |= {cut: k for k, cut in enumerate(cuts[:-1])}
    groups = _group(program, segments, owner, backward)
    frozen = next((k for k, g in enumerate(groups) if g), len(segments))
    size = [program.tensors[c].bytes for c in cuts]
    kept = len(segments)
    while kept > 0 and (len(segments[kept - 1]) > 1 or size[kept - 1] * 8 <= max(size[1:])):
        kept -= 1
    return Chain(cuts, segments, groups, frozen, max(kept, frozen))


def _group(program: Program, segments: list[list[Call]], owner: dict[str, int], backward: list[Call]) -> list[list[Call]]:
    """The backward calls by the segment whose input has to be on hand for them, in order of emission within it.

    The groups are emitted from the last to the first; what is computed again after a group lies in segments below it.
    So a call belongs to the segment that it reads from, not above the calls that make its inputs; and one that updates
    a parameter belongs no higher than any segment, or other backward call, that reads the parameter.
    """
    views = parameter_views(program)
    readers: dict[str, int] = {}        # parameter -> the lowest segment, and then group, that reads it
    for k in reversed(range(len(segments))):
        readers |= {views.get(t, t): k for c in segments[k] for t in c.inputs.values()}
    groups: list[list[Call]] = [[] for _ in segments]
    made: dict[str, int] = {}
    at = len(segments) - 1
    for c in backward:
        kept = [owner[t] for t in c.inputs.values() if t in owner]
        bounds = [made[t] for t in c.inputs.values() if t in made] + ([max(kept)] if kept else [])
        at = min([*(bounds or [at]), *(readers[p] for p in c.updates.values())])
        groups[at].append(c)
        made |= dict.fromkeys(c.outputs.values(), at)
        for t in c.inputs.values():
            parameter = views.get(t, t)
            readers[parameter] = min(readers.get(parameter, at), at)
    return groups


class Scheduler:
    """Emits the whole step for a given number of kept cuts."""

    def __init__(self, program: Program, chain: Chain, cost: Callable[[Call], int]) -> None:
        self.base, self.chain = program, chain
        work = [sum(cost(c) for c in seg) for seg in chain.segments]
        self.prefix = [0]
        for w in work:
            self.prefix.append(self.prefix[-1] + w)

    def _forward_cost(self, i: int, k: int) -> int:
        return self.prefix[k] - self.prefix[i]

    def _runs(self, i: int, j: int, stride: int) -> list[range]:
        """The segments from cut i to cut j that have gradients, last first, in runs of `stride` counted from below."""
        low = max(i, self.chain.frozen)
        return [range(min(k + stride, j) - 1, k - 1, -1) for k in reversed(range(low, j, stride))]

    @cache  # noqa: B019  (one scheduler lives as long as one compilation)
    def best(self, i: int, j: int, slots: int, stride: int, first: bool) -> tuple[int, int]:
        """(recomputed multiply-accumulates, where the next kept cut lies; 0 for none) to go back from cut j to cut i.

        first: the forward pass from i to j has just been done for the first time, so that its cuts were on hand.
        """
        if j <= max(self.chain.frozen, i + 1):
            return 0, 0
        plain = sum(self._forward_cost(i, run[0]) for run in self._runs(i, j, stride)[1 if first else 0:])
        choice = (plain, 0)
        if slots:
            for k in range(max(i + 1, self.chain.frozen), j):
                if (k - self.chain.frozen) % stride:
                    continue
                cost = (0 if first else self._forward_cost(i, k)) + self.best(k, j, slots - 1, stride, first)[0] \
                    + self.best(i, k, slots, stride, False)[0]
                if cost < choice[0]:
                    choice = (cost, k)
        return choice

    def emit(self, slots: int, source: int, stride: int = 1) -> Program:
        """The step with `slots` kept cuts besides cut `source` (0: the input itself; else the lowest needed cut).

        stride: how many gradients in a row follow one recomputation between kept cuts. 2 keeps the input of the
        segment before while the gradient of the one behind it is made: one tensor more, but only then.
        """
        program = self.base.copy()
        program.calls = [c for seg in self.chain.segments for c in seg]
        names = dict(enumerate(self.chain.cuts))
        for k in range(len(self.chain.segments) - 1, self.chain.kept - 1, -1):
            self._backward(program, k, names)
        self._reverse(program, source, self.chain.kept, slots, stride, True, names)
        return program

    def _reverse(self, program: Program, i: int, j: int, slots: int, stride: int, first: bool,
                 names: dict[int, str]) -> None:
        if j <= self.chain.frozen:
            return
        if j == i + 1:
            self._backward(program, i, names)
            return
        _, k = self.best(i, j, slots, stride, first)
        if k:
            inner = dict(names) if first else self._recompute(program, i, k, names)
            self._reverse(program, k, j, slots - 1, stride, first, inner)
            self._reverse(program, i, k, slots, stride, False, names)
            return
        for n, run in enumerate(self._runs(i, j, stride)):
            on_hand = (first and n == 0) or run[0] == i
            inner = names if on_hand else self._recompute(program, i, run[0], names)
            for segment in run:
                self._backward(program, segment, inner)

    def _backward(self, program: Program, k: int, names: dict[int, str]) -> None:
        rename = {self.chain.cuts[k]: names[k]}
        program.calls += [c.renamed(rename) for c in self.chain.backward[k]]

    def _recompute(self, program: Program, i: int, k: int, names: dict[int, str]) -> dict[int, str]:
        """Forward again from cut i to cut k, on new tensors."""
        rename = {self.chain.cuts[i]: names[i]}
        for segment in self.chain.segments[i:k]:
            for c in segment:
                for t in c.outputs.values():
                    old = self.base.tensors[t]
                    rename[t] = program.add(Tensor(fresh(program, f"{t}.again"), old.type, old.role,
                                                   old.source)).name
                program.calls.append(c.renamed(rename))
        return {**names, **{m: rename[self.chain.cuts[m]] for m in range(i, k + 1)}}
