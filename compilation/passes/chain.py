"""The forward pass cut into segments that can be computed again, each with its gradients.

A cut is a point between two calls; what lives across it, one tensor or several, is all that the rest of the forward
pass needs from below. A segment is what lies between two cuts, whatever calls it is made of: made again from the cut
below it, it gives the cut above it and the tensors inside it that its own gradients read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

from compilation.passes.rewrite import parameter_views
from compilation.program import VIEW, Call, Program, Role

BETTER = 0.75       # a cut is made inside a segment where that leaves at most so much of the bytes kept for its gradients
NEAR = 2            # and where at most so many times the fewest bytes of the segment live across it
SMALL = 8           # a segment that keeps so many times less than the largest cut is not worth making again


@dataclass(frozen=True)
class Segment:
    """Part of the forward pass and the gradients of it.

    start: the tensors that live across the cut below it; inside: those that it makes and its own gradients read.
    calls: all of it; once: what of it runs in the first forward pass when `inside` is not kept; onward: what makes the
    cut above it again; inner: what makes `inside` again.
    """

    start: tuple[str, ...]
    inside: tuple[str, ...]
    calls: tuple[Call, ...]
    once: tuple[Call, ...]
    onward: tuple[Call, ...]
    inner: tuple[Call, ...]
    backward: tuple[Call, ...]


@dataclass(frozen=True)
class Chain:
    """segments: in forward order; those below `frozen` have no gradients. From `kept` on everything that gradients read
    is kept, unless asked otherwise: these segments make little, or keep more than their input. kept_bytes: what that
    is, of each segment."""

    segments: tuple[Segment, ...]
    frozen: int
    kept: int
    kept_bytes: tuple[int, ...]

    def kept_options(self) -> list[int]:
        """From where on to keep everything: values worth trying, from the highest (which keeps least) down."""
        top = len(self.segments) - 1
        while top > self.kept and self.kept_bytes[top - 1] * SMALL <= max(self.kept_bytes[:top]):
            top -= 1
        thick = [k for k in range(self.frozen, top) if self.segments[k].inside]     # all others lose only their input
        steps = [0, 1, 2, 3]
        while steps[-1] < len(thick):
            steps.append(min(steps[-1] * 4 // 3 + 1, len(thick)))
        found = {thick[-s] if s else top for s in steps if s <= len(thick)} | {self.kept}
        return sorted((k for k in found if self.frozen <= k <= top), reverse=True)


def cut_chain(program: Program, forward: list[Call], backward: list[Call]) -> Chain:
    """Cut a training Program whose calls are `forward`, to the loss, then `backward`."""
    flow = _Flow(program, forward, backward)
    ends = flow.ends()
    groups = _Groups(program, flow, ends).sort(backward)
    # A cut whose segment has gradients that read nothing of the forward pass serves the segment below it only.
    frozen = next((k for k, g in enumerate(groups) if flow.reads(g)), len(ends))
    keep = [k for k in range(len(ends)) if k <= frozen or flow.reads(groups[k])]
    spans = [*keep, len(ends)]
    merged = [[c for g in reversed(groups[a:b]) for c in g] for a, b in pairwise(spans)]
    low = min(frozen, len(merged) - 1)
    merged[low] += [c for g in reversed(merged[:low]) for c in g]      # updates alone: they wait for no tensor
    merged[:low] = [[] for _ in range(low)]
    begins = [0 if k == 0 else ends[k - 1] + 1 for k in keep]
    segments = flow.segments(begins, merged)
    frozen = next((k for k, s in enumerate(segments) if s.backward), len(segments))
    bytes_kept = tuple(flow.size({*s.start, *s.inside}) for s in segments)
    largest = max((flow.size(s.start) for s in segments[1:]), default=0)
    kept = len(segments)
    while kept > frozen and (kept == len(segments) or segments[kept - 1].inside
                             or bytes_kept[kept - 1] * SMALL <= largest):
        kept -= 1
    return Chain(segments, frozen, max(kept, min(frozen, len(segments) - 1)), bytes_kept)


class _Flow:
    """Where the activations of the forward pass are made and last read. The views of a parameter are always on hand."""

    def __init__(self, program: Program, forward: list[Call], backward: list[Call]) -> None:
        self.program, self.forward = program, forward
        self.apart = apart = set(parameter_views(program)) | {program.label}
        moving = {n for n, t in program.tensors.items() if t.role in (Role.ACTIVATION, Role.INPUT)} - apart
        self.made = {t: i for i, c in enumerate(forward) for t in c.outputs.values() if t in moving}
        self.made |= {t: -1 for c in forward for t in c.inputs.values() if t in moving and t not in self.made}
        self.last = dict(self.made) | {t: i for i, c in enumerate(forward) for t in c.inputs.values() if t in self.made}
        self.roots: dict[str, str] = {}         # a view -> the tensor whose bytes it shows
        for c in forward:
            if c.op == VIEW and c.outputs["y"] in self.made:
                self.roots[c.outputs["y"]] = self.roots.get(c.inputs["x"], c.inputs["x"])
        self.saved = {t for c in backward for t in c.inputs.values() if t in self.made}
        self.live: list[tuple[str, ...]] = []   # after each call
        alive = [t for t, i in self.made.items() if i < 0]
        for i, c in enumerate(forward):
            alive = [t for t in (*alive, *(t for t in c.outputs.values() if t in self.made)) if self.last[t] > i]
            self.live.append(tuple(alive))

    def size(self, tensors: Iterable[str]) -> int:
        return sum(self.program.tensors[t].bytes for t in {self.roots.get(t, t) for t in tensors})

    def reads(self, calls: Iterable[Call]) -> bool:
        return any(t in self.made for c in calls for t in c.inputs.values())

    def ends(self) -> list[int]:
        """The last call of each segment: wherever a single tensor lives, and in between wherever it pays."""
        last = len(self.forward) - 1
        single = [i for i in range(last) if len({self.roots.get(t, t) for t in self.live[i]}) == 1]
        made = [0, *accumulate(self.size(t for t in c.outputs.values() if t in self.saved) for c in self.forward)]
        lives = [self.size(live) for live in self.live]
        found = []
        todo = list(pairwise([-1, *single, last]))
        while todo:
            begin, end = todo.pop()
            found.append(end)

            def held(low: int, high: int) -> int:
                """Bytes that calls low + 1 to high make for their gradients, beside the cut behind them."""
                return made[high + 1] - made[low + 1] - self.size(
                    t for t in self.live[high] if self.made[t] > low and t in self.saved)

            least = min(lives[begin + 1:end], default=0)
            options = [(lives[p] + max(held(begin, p), held(p, end)), p) for p in range(begin + 1, end)
                       if lives[p] <= NEAR * least]
            best, at = min(options, default=(0, end))
            if at < end and best <= BETTER * held(begin, end):
                todo += [(begin, at), (at, end)]
        return sorted(set(found))

    def segments(self, begins: list[int], groups: list[list[Call]]) -> tuple[Segment, ...]:
        """The segments from these calls on, with these gradients."""
        out, bounds = [], [*begins, len(self.forward)]
        ranges = list(pairwise(bounds))
        inputs = tuple(t for t, i in self.made.items() if i < 0)
        starts = [inputs if a == 0 else self.live[a - 1] for a in begins]
        beside: set[str] = set()        # read by gradients that find them neither at the start nor inside: always kept
        inside = []
        for (a, b), group, start in zip(ranges, groups, starts, strict=True):
            read = dict.fromkeys(t for c in group for t in c.inputs.values() if t in self.made)
            inside.append(tuple(t for t in read if a <= self.made[t] < b))
            beside |= set(read) - set(inside[-1]) - set(start)
        for k, ((a, b), group) in enumerate(zip(ranges, groups, strict=True)):
            calls = self.forward[a:b]
            above = set(starts[k + 1]) if k + 1 < len(starts) else set()
            kept = {t for c in calls for t in c.outputs.values() if t not in self.made}
            out.append(Segment(starts[k], inside[k], tuple(calls), self._needed(calls, above | beside | kept),
                               self._again(calls, above), self._again(calls, set(inside[k])), tuple(group)))
        return tuple(out)

    def _needed(self, calls: list[Call], wanted: set[str]) -> tuple[Call, ...]:
        """Those of the calls that the wanted tensors depend on."""
        found = []
        wanted = set(wanted)
        for c in reversed(calls):
            if not wanted.isdisjoint(c.outputs.values()):
                found.append(c)
                wanted.update(c.inputs.values())
        return tuple(reversed(found))

    def _again(self, calls: list[Call], wanted: set[str]) -> tuple[Call, ...]:
        """The same, without the views of parameters."""
        return tuple(c for c in self._needed(calls, wanted) if self.apart.isdisjoint(c.outputs.values()))


class _Groups:
    """Sorts the backward calls by the segment that has to be on hand for them.

    The groups are emitted from the last to the first, and what is computed again after a group lies in segments below
    it. So a call belongs no higher than the calls that make its inputs, nor than the last segment that has each
    activation it reads, inside it or at its start; and one that updates a parameter no higher than any segment, or
    other backward call, that reads the parameter.
    """

    def __init__(self, program: Program, flow: _Flow, ends: list[int]) -> None:
        self.views = parameter_views(program)
        self.top = len(ends) - 1
        segment = [k for k, (a, b) in enumerate(pairwise([-1, *ends])) for _ in range(b - a)]
        self.highest = {t: segment[max(i, 0)] for t, i in flow.last.items()}
        self.readers: dict[str, int] = {}       # parameter -> the lowest segment, and then group, that reads it
        for c, k in zip(reversed(flow.forward), reversed(segment), strict=True):
            self.readers |= dict.fromkeys((self.views.get(t, t) for t in c.inputs.values()), k)

    def sort(self, backward: list[Call]) -> list[list[Call]]:
        groups: list[list[Call]] = [[] for _ in range(self.top + 1)]
        made: dict[str, int] = {}
        at = self.top
        for c in backward:
            bounds = [known[t] for t in c.inputs.values() for known in (made, self.highest) if t in known]
            at = min([*(bounds or [at]), *(self.readers[p] for p in c.updates.values())])
            groups[at].append(c)
            made |= dict.fromkeys(c.outputs.values(), at)
            for t in c.inputs.values():
                parameter = self.views.get(t, t)
                self.readers[parameter] = min(self.readers.get(parameter, at), at)
        return groups
