"""Form regions: which calls of the forward pass become one operation, to be computed tile by tile (`compilation.regions`).

The forward pass is cut wherever a single tensor carries everything onward. What lies between two cuts, a residual branch
with its addition, say, is a region if it is more than one call and all of it leaves; an elementwise call on its own goes
with what is before it; and neighbours are one region where what is between them is larger than what is at both ends, as
the hidden layer of a chain of linears is. Beside a call that is no leaf, a stretch of leaves is a region of its own where
it hides a tensor larger than its ends. Only indices, readers and sizes are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from compilation.ops import REGISTRY
from compilation.passes.rewrite import parameter_views, site, use_counts
from compilation.program import VIEW, Call, Program, Role, Tensor
from compilation.regions.definition import numbered
from compilation.regions.region import Region
from compilation.types import F32

RESULT, DY = "y", "dy"      # the slots of a region that are not named after those of its calls
PARAMETERS = (Role.CONSTANT, Role.TRAINED)


@dataclass
class Stretch:
    """Calls in a row, all of them leaves or not. ends: bytes of the tensors before and behind it."""

    calls: list[Call]
    leaves: bool
    ends: tuple[int, int]


def form_regions(program: Program, chosen: set[int] | None = None) -> int:
    """Replace chains of leaves by regions, in place; returns how many there are.

    chosen: the indices (in program order) of those to form; None forms all of them.
    """
    _merge_views(program)
    found = candidates(program)
    taken = [calls for i, calls in enumerate(found) if chosen is None or i in chosen]
    reads = use_counts(program)
    results = [_results(reads, calls) for calls in taken]
    made = {id(calls[-1]): _form(program, calls, result) for calls, (result,) in zip(taken, results, strict=True)}
    inside = {id(c) for calls in taken for c in calls}
    program.calls = [made.get(id(c), c) for c in program.calls if id(c) not in inside or id(c) in made]
    return len(found)


def candidates(program: Program) -> list[list[Call]]:
    """The calls of each region that could be formed, in program order."""
    found: list[list[Call]] = []
    reads = use_counts(program)
    for s in _joined(_absorbed(program, _segments(program))):
        found += ([s.calls] if len(s.calls) > 1 else []) if s.leaves else _hiding(program, reads, s.calls)
    return found


def _merge_views(program: Program) -> None:
    """Several views of one tensor in one shape become one, so that one tensor is live and not as many."""
    first: dict[object, str] = {}
    names: dict[str, str] = {}
    kept: list[Call] = []
    for c in (c.renamed(names) if names else c for c in program.calls):
        if c.op == VIEW:
            result = c.outputs["y"]
            same = first.setdefault((c.inputs["x"], program.tensors[result].shape, c.attrs), result)
            if same != result and result != program.logits:
                names[result] = same
                del program.tensors[result]
                continue
        kept.append(c)
    program.calls = kept


# -- where ------------------------------------------------------------------------------------------------
def _segments(program: Program) -> list[Stretch]:
    """The forward pass, cut wherever one tensor alone is live."""
    last = {t: i for i, c in enumerate(program.calls) for t in c.inputs.values()} | {program.logits: len(program.calls)}
    fixed = {n for n, t in program.tensors.items() if t.role in PARAMETERS} | parameter_views(program).keys()
    found: list[Stretch] = []
    current: list[Call] = []
    live, source = {program.image}, program.image
    for i, c in enumerate(program.calls):
        current.append(c)
        live = {t for t in live.union(c.outputs.values()) - fixed if last.get(t, -1) > i}
        if len(live) == 1:
            result, = live
            ends = program.tensors[source].bytes, program.tensors[result].bytes
            found.append(Stretch(current, all(_leaf(program, c) for c in current), ends))
            current, source = [], result
    return found


def _leaf(program: Program, call: Call) -> bool:
    """Whether a call can be taken in tiles: a leaf whose tiles are parts of matrices."""
    if call.op not in REGISTRY or not REGISTRY[call.op].leaf:
        return False
    slots = REGISTRY[call.op].slots
    tiles = [program.tensors[t].type for s, t in (*call.inputs.items(), *call.outputs.items()) if slots[s].kind == "tile"]
    return all(len(t.shape) == 2 and t.element == F32 for t in tiles)


def _elementwise(program: Program, call: Call) -> bool:
    """No sum over an index, and none that is needed whole."""
    op = REGISTRY[call.op]
    return op.macs(site(program, call)) == 0 and not op.line.whole and not any(op.summed(s) for s in call.outputs)


def _absorbed(program: Program, segments: list[Stretch]) -> list[Stretch]:
    """A segment that is one elementwise call goes with the one before it."""
    kept: list[Stretch] = []
    for s in segments:
        if kept and kept[-1].leaves and s.leaves and len(s.calls) == 1 and _elementwise(program, s.calls[0]):
            kept[-1] = _union([kept[-1], s])
        else:
            kept.append(s)
    return kept


def _joined(segments: list[Stretch]) -> list[Stretch]:
    """Neighbours joined wherever all the tensors between them are larger than those at both ends."""
    left = list(segments)
    at = 0
    while at < len(left):
        between = left[at].ends[1]
        for end in range(at + 1, len(left)):
            if not (left[at].leaves and left[end].leaves):
                break
            if between > max(left[at].ends[0], left[end].ends[1]):
                left[at:end + 1] = [_union(left[at:end + 1])]
                at = -1             # the union may be a hidden part itself
                break
            between = min(between, left[end].ends[1])
        at += 1
    return left


def _union(run: list[Stretch]) -> Stretch:
    return Stretch([c for s in run for c in s.calls], True, (run[0].ends[0], run[-1].ends[1]))


def _hiding(program: Program, reads: Counter[str], calls: list[Call]) -> list[list[Call]]:
    """Of a segment that is not all leaves, the longest stretches that hide a tensor larger than their ends."""
    found: list[list[Call]] = []
    at = 0
    while at < len(calls):
        for end in range(len(calls), at + 1, -1):
            stretch = calls[at:end]
            if all(_leaf(program, c) for c in stretch) and _hides(program, reads, stretch):
                found.append(stretch)
                at = end - 1
                break
        at += 1
    return found


def _hides(program: Program, reads: Counter[str], calls: list[Call]) -> bool:
    """Whether the calls have one result, and make a tensor on the way that is larger than it and all that they read."""
    made = {t for c in calls for t in c.outputs.values()}
    results = _results(reads, calls)
    ends = {t for c in calls for t in c.inputs.values() if program.tensors[t].role not in PARAMETERS} - made | results
    size = {t: program.tensors[t].bytes for t in made | ends}
    return len(results) == 1 and max((size[t] for t in made - results), default=0) > max(size[t] for t in ends)


def _results(reads: Counter[str], calls: Sequence[Call]) -> set[str]:
    """The tensors that these calls make and others read. reads: how many slots read each tensor, of all calls."""
    read = reads - Counter(t for c in calls for t in c.inputs.values())
    return {t for c in calls for t in c.outputs.values() if read[t]}


# -- what ----------------------------------------------------------------------------------------------------
def _form(program: Program, calls: list[Call], result: str) -> Call:
    """The call that stands for these; what they alone make and read is taken out of the Program."""
    common = common_path(c.where for c in calls)
    slots = _slots(calls)               # outer tensor -> slot
    work = Program("region")
    for t in (*slots, *(t for c in calls for t in c.outputs.values())):
        old = program.tensors[t]
        role = Role.ACTIVATION if t not in slots else Role.CONSTANT if old.role in PARAMETERS else Role.INPUT
        work.add(Tensor(t, old.type, role))
    work.calls = [replace(c, where=c.where.removeprefix(common).lstrip(".")) for c in calls]
    region = Region(numbered(work, {**slots, result: RESULT}), (RESULT,))
    region = program.regions.setdefault(region.name, region)
    new = Call(region.name, {s: t for t, s in slots.items()}, {RESULT: result}, region.defaults(), where=common)
    for t in [t for c in calls for t in c.outputs.values() if t != result]:
        del program.tensors[t]
    return new


def _slots(calls: list[Call]) -> dict[str, str]:
    """Tensor that the calls read and do not make -> its slot, named after the first that reads it."""
    made = {t for c in calls for t in c.outputs.values()}
    slots: dict[str, str] = {}
    taken = {RESULT, DY}
    for c in calls:
        for slot, t in c.inputs.items():
            if t in made or t in slots:
                continue
            name, n = slot, 1
            while name in taken:
                n += 1
                name = f"{slot}_{n}"
            taken.add(name)
            slots[t] = name
    return slots


def common_path(paths: Iterable[str]) -> str:
    """The module that all these modules lie in, or are."""
    first, *others = [p.split(".") for p in dict.fromkeys(paths)]
    at = 0
    while at < len(first) and all(p[at:at + 1] == first[at:at + 1] for p in others):
        at += 1
    return ".".join(first[:at])
