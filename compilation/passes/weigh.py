"""What an order of a step costs, without making the Program: peak bytes of the arena, multiply-accumulates, time.

The same rules as `storage.share_storage`, `memory.liveness` and `storage.tune`, on names and sizes alone; the search
over orders asks for hundreds of answers and makes one Program. The tests hold the two to the same figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compilation.cost import call_time
from compilation.memory.liveness import padded
from compilation.passes.checkpoints import Part
from compilation.passes.rewrite import site
from compilation.passes.storage import kernel_settings
from compilation.program import ARENA_ROLES, VIEW, Call, Program, Role
from compilation.target import Target

MOVABLE = {Role.ACTIVATION, Role.GRADIENT}


@dataclass(frozen=True)
class Load:
    """What a call does to the arena. reads, makes: tensors there; sizes: bytes of those made. pairs: (which of `makes`,
    which of `reads`, always) whose storage the result may, or always does, take over. settings: (scratch bytes,
    multiply-accumulates, estimated time), fastest first."""

    reads: tuple[str, ...]
    makes: tuple[str, ...]
    sizes: tuple[int, ...]
    pairs: tuple[tuple[int, int, bool], ...]
    settings: tuple[tuple[int, int, int], ...]


Step = tuple[Load, list[str], list[str]]    # a call, and the tensors that it reads and makes in this order


class Scales:
    """Weighs orders of one Program's calls."""

    def __init__(self, program: Program, target: Target) -> None:
        self.program, self.target = program, target
        self.root: dict[str, str] = {}          # through views
        for c in program.calls:
            if c.op == VIEW:
                self.root[c.outputs["y"]] = self.root.get(c.inputs["x"], c.inputs["x"])
        self.calls = list(program.calls)        # holds them, so that no other gets the id of one
        self.loads = {id(c): self._load(c) for c in self.calls}
        self.inputs = {n: padded(t.bytes) for n, t in program.tensors.items() if t.role is Role.INPUT}

    def _movable(self, name: str) -> bool:
        return self.program.tensors[name].role in MOVABLE

    def _in_arena(self, name: str) -> bool:
        t = self.program.tensors.get(self.root.get(name, name))
        return t is not None and t.role in ARENA_ROLES

    def _load(self, call: Call) -> Load:
        tensors = self.program.tensors
        reads = [(s, t) for s, t in call.inputs.items() if self._in_arena(t)]
        makes = [(s, t) for s, t in call.outputs.items() if self._in_arena(t)]
        read, made = [s for s, _ in reads], [s for s, _ in makes]
        alias = {"y": "x"} if call.op == VIEW else {}
        if self.program.has_op(call):
            alias = dict(self.program.op(call).may_alias(site(self.program, call)))
        pairs = []
        for out, into in alias.items():
            if out not in made or into not in read:
                continue
            source, result = tensors[call.inputs[into]], tensors[call.outputs[out]]
            fits = source.bytes == result.bytes and source.element == result.element
            if call.op == VIEW or (fits and self._movable(self.root.get(source.name, source.name))
                                   and self._movable(result.name)):
                pairs.append((made.index(out), read.index(into), call.op == VIEW))
        if self.program.has_op(call):
            settings = [(s.scratch, s.macs, s.time) for s in kernel_settings(self.program, call, self.target)]
        else:
            settings = [(padded(int(call.attrs.get("work_bytes", 0))), int(call.attrs.get("macs", 0)),
                         call_time(self.program, call, self.target))]
        sizes = tuple(padded(tensors[t].bytes) for _, t in makes)
        return Load(tuple(t for _, t in reads), tuple(t for _, t in makes), sizes, tuple(pairs), tuple(settings))

    def steps(self, parts: Sequence[Part]) -> list[Step]:
        """The calls of an order, one by one."""
        out: list[Step] = []
        for part in parts:
            get = part.names.get
            for c in part.calls:
                load = self.loads[id(c)]
                out.append((load, [get(t, t) for t in load.reads], [get(t, t) for t in load.makes]))
        return out

    def weigh(self, steps: Sequence[Step], capacity: int | None) -> tuple[int, int, int]:
        """(peak bytes, multiply-accumulates, estimated time) with the settings that `tune` would choose for `capacity`."""
        last: dict[str, int] = {}
        for i, (_, reads, makes) in enumerate(steps):
            for t in reads:
                last[t] = i
            for t in makes:
                last[t] = i
        size = {t: n for t, n in self.inputs.items() if t in last}
        end = {t: last[t] for t in size}        # storage -> the last call that touches it; gone once freed
        root = {t: t for t in size}             # tensor -> its storage
        live, peak, macs, time = sum(size.values()), 0, 0, 0
        for i, (load, reads, makes) in enumerate(steps):
            for m, r, always in load.pairs:
                storage, result = root[reads[r]], makes[m]
                if always or (end[storage] == i and sum([root[t] == storage for t in reads]) == 1):
                    root[result] = storage
                    end[storage] = max(end[storage], last[result])
            for t, n in zip(makes, load.sizes, strict=True):
                if t not in root:
                    root[t], size[t], end[t] = t, n, last[t]
                    live += n
            scratch, work, takes = self._setting(load, capacity, live)
            macs += work
            time += takes
            peak = max(peak, live + scratch)
            for t in (*reads, *makes):
                storage = root[t]
                if end[storage] == i:
                    end[storage] = -1
                    live -= size[storage]
        return peak, macs, time

    def least(self, calls: Iterable[Call]) -> int:
        """Estimated time of these calls at the fastest settings."""
        return sum([min(time for _, _, time in self.loads[id(c)].settings) for c in calls])

    def floor(self, calls: Sequence[Call]) -> int:
        """Peak bytes of these calls in a row, if nothing else lived: no step with them in it takes less."""
        steps = self.steps([Part(calls, {})])
        made: set[str] = set()
        given: dict[str, int] = {}      # from before; of views and what they show, one has the bytes
        for _, reads, makes in steps:
            for t in reads:
                if t not in made and t not in self.inputs:
                    root = self.root.get(t, t)
                    seen = any(self.root.get(g, g) == root for g in given if g != t)
                    given.setdefault(t, 0 if seen else padded(self.program.tensors[root].bytes))
            made.update(makes)
        begin = Load((), tuple(given), tuple(given.values()), (), ((0, 0, 0),))
        return self.weigh([(begin, [], list(given)), *steps], 0)[0]

    @staticmethod
    def _setting(load: Load, capacity: int | None, live: int) -> tuple[int, int, int]:
        settings = load.settings
        if capacity is None or settings[0][0] <= capacity - live:
            return settings[0]
        return next((s for s in settings if s[0] <= capacity - live), None) or min(settings, key=lambda s: s[0])
