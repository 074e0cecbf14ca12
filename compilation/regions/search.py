"""The schedules of a region that are worth having: fastest first, least scratch last.

What the loops look like depends on little: which features are outside of the tokens, whether keys come in blocks,
whether one token comes at a time, and the schedule's choices. For each of these structures the nest is built once; its
bytes and its work at every combination of steps are then arithmetic on the sizes of its loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from compilation.memory.liveness import ALIGNMENT
from compilation.ops.base import Op
from compilation.program import Role
from compilation.regions.build import build
from compilation.regions.estimate import Steps, blocks, own_step, window
from compilation.regions.estimate import work as steps_work
from compilation.regions.labels import FEW, Label
from compilation.regions.memory import Layout
from compilation.regions.nest import Block, NoNestError, Placed
from compilation.regions.schedule import Schedule
from compilation.regions.statements import Statement, Statements
from compilation.regions.sums import takes_shares
from compilation.target import FEATURES, TILES, Target

WORTH = 0.005                       # the share of time that more scratch has to save


@dataclass(frozen=True)
class Option:
    """One schedule. scratch: bytes that live at once (a placement may need a few more); macs: multiply-accumulates; time:
    estimated, in those of full tiles. over: results that may take the place of an input: result -> slot."""

    schedule: str
    scratch: int
    macs: int
    time: int
    over: frozenset[tuple[str, str]]


def options(make: Callable[[bool], Statements], target: Target) -> list[Option]:
    """Every schedule that was tried. make: split or not -> Statements."""
    found: list[Option] = []
    for split in (False, True):
        work = make(split)
        if split and not _may_split(work):
            continue
        for structure in _structures(work, split):
            found += _evaluate(work, structure, target)
    return found


def pruned(found: Iterable[Option]) -> list[Option]:
    """By time; those dropped that are not faster than a smaller one, by what is worth its bytes."""
    kept: list[Option] = []
    for o in sorted(found, key=lambda o: (o.scratch, o.time)):
        if not kept or o.time * (1 + WORTH) < kept[-1].time:
            kept.append(o)
    return kept[::-1]


@dataclass(frozen=True)
class Structure:
    """What the loops look like, with nominal steps. axes: the steps to try, by (label, whether it is a tile of a block)."""

    schedule: Schedule
    axes: tuple[tuple[tuple[str, bool], ...], ...]
    steps: tuple[tuple[int, ...], ...]


def _structures(work: Statements, split: bool) -> Iterator[Structure]:
    useful = _useful(work)
    tokens = [x for x in useful if _is_token(work, x) and not x.carried]
    keys = [x for x in useful if x.carried]
    features = [x for x in useful if x not in tokens and not x.carried and _is_long(work, x)]
    tall = max([x.size for x in (*tokens, *keys)], default=1)
    heads = [x for x in features if _factor(work, x) > 1]       # nothing is gained by heads inside of tokens
    for outside in ([*heads, *some] for some in _subsets([x for x in features if x not in heads])):
        for blocked in (False, True) if keys else (False,):
            for one in (False, True) if tall > 1 and not (blocked and min(x.size for x in keys) <= 2) else (True,):
                for choices in _choices(work, blocked, bool(outside), split):
                    yield _structure(work, outside, [f for f in features if f not in outside], tokens, keys, blocked, one,
                                     choices)


def _structure(work: Statements, outside: list[Label], inside: list[Label], tokens: list[Label], keys: list[Label],
               blocked: bool, one: bool, choices: frozenset[str]) -> Structure:
    loops: list[tuple[str, int]] = []
    axes: list[tuple[tuple[str, bool], ...]] = []
    steps: list[tuple[int, ...]] = []

    def features(labels: list[Label]) -> None:
        alike: dict[tuple[int, bool], list[Label]] = {}     # those of one size are taken in the same steps
        for x in labels:
            alike.setdefault((x.size, _factor(work, x) > 1), []).append(x)
        for (size, head), group in alike.items():
            sizes = (1,) if head else tuple(sorted({min(s, size) for s in FEATURES}, reverse=True))
            loops.extend((x.name, sizes[0]) for x in group)
            axes.append(tuple((x.name, False) for x in group))
            steps.append(sizes)

    features(outside)
    if blocked:
        for x in keys:
            sizes = [b for b in blocks_of(x.size) if one or b > 1]     # one key at a time is one token at a time
            loops.append((x.name, sizes[0]))
            axes.append(((x.name, False),))
            steps.append(tuple(sizes))
    nominal = 1 if one else TILES[0]
    for x in (*tokens, *keys):
        loops.append((x.name, nominal))
    axes.append(tuple([(x.name, False) for x in tokens] + [(x.name, blocked) for x in keys]))
    steps.append((1,) if one else tuple(t for t in TILES if t > 1))
    features(inside)
    return Structure(Schedule(tuple(loops), choices), tuple(axes), tuple(steps))


def blocks_of(n: int) -> list[int]:
    """Blocks of keys worth trying: even parts, and a few."""
    even = {-(-n // k) for k in (2, 3, 4, 5, 6, 8, 10, 13, 16)}
    return sorted({b for b in even | {8, 6, 4, 2, 1} if b < n}, reverse=True)


def _useful(work: Statements) -> list[Label]:
    """Labels along which a tensor of the region's own is cut, or that must be."""
    made = {t for s in work.all for t in s.makes.values()} - set(work.results) - work.sums.keys()
    found: list[Label] = [x for x in work.labels if x.limit or x.carried]
    for s in work.all:
        for slot, t in (*s.reads.items(), *s.makes.items()):
            if t in made or t in work.sums:
                found += [a.label for a in s.along(slot)[:1 if t in work.sums else None] if a.label is not None]
            elif s.op.layout.get(slot) == "panel":
                found += [a.label for a in s.along(slot)[:1] if a.label is not None]
    ends = _ends(work)
    outer = {a.label for s in work.all for slot, t in (*s.reads.items(), *s.makes.items())
             if t in ends and s.op.slots[slot].kind == "tile" for a in s.along(slot)[1:]}
    return [x for x in work.labels if x in found and (x not in outer or _is_token(work, x))]


def _ends(work: Statements) -> set[str]:
    """The region's own slots that are token matrices, and sums."""
    given = {n for n, t in work.definition.tensors.items() if t.role is Role.INPUT}
    return (given | set(work.results) | work.sums.keys()) - work.gradients


def _is_token(work: Statements, label: Label) -> bool:
    """Whether it runs along the rows of one of them."""
    ends = _ends(work)
    return any(a.label is label for s in work.all for slot, t in (*s.reads.items(), *s.makes.items())
               if t in ends and s.op.slots[slot].kind == "tile" for a in s.along(slot)[:1])


def _is_long(work: Statements, label: Label) -> bool:
    """Whether a tile of it is less than all: it has many elements, or a matrix has it and no rows of tokens."""
    if label.size > FEW or _factor(work, label) > 1:
        return True
    inner = {t for s in work.all for t in s.makes.values()} - _ends(work) - set(work.results)
    cut = [s.along(slot) for s in work.all for slot, t in s.makes.items() if t in inner]
    return any(prod(a.size for a in axes) > FEW * label.size for axes in cut if label in [a.label for a in axes]
               and not any(a.label and (a.label.carried or _is_token(work, a.label)) for a in axes))


def _factor(work: Statements, label: Label) -> int:
    return max((factor * (s.sizes[axis.inner] if axis.inner else 1) for s in work.all
                for axes in s.op.line.axes.values() for axis in axes if axis.index in s.labels
                for x, factor in (s.labels[axis.index],) if x is label), default=1)


def _subsets(features: list[Label]) -> Iterator[list[Label]]:
    """Some of them: all of one size, or none."""
    sizes = list(dict.fromkeys(x.size for x in features))
    for chosen in product((True, False), repeat=len(sizes)):
        outside = {size for size, c in zip(sizes, chosen, strict=True) if c}
        yield [x for x in features if x.size in outside]


def _may_split(work: Statements) -> bool:
    return any(s.op.joint and s.op.before for s in work.all) and _sinks(work)


def _sinks(work: Statements) -> bool:
    return any(s.op.slots[o].sink and s.op.slots[o].kind == "matrix" for s in work.all for o in s.makes)


def _choices(work: Statements, blocked: bool, outside: bool, split: bool) -> Iterator[frozenset[str]]:
    shares = any(takes_shares(s.call, slot) for s in work.all for slot in s.sources)
    forward = any(o in s.op.adds and not work.gradient(s, o) and t not in work.sums and not s.op.joint
                  for s in work.all for o, t in s.makes.items())
    toggles = [["rows"]] * (forward and (outside or blocked)) + [["each"]] * (shares and blocked) + [["keep"]] * blocked \
        + [["add"]] * _sinks(work) + [["store"]] * blocked + [["wait"]] * (blocked and forward and outside)
    for chosen in product((False, True), repeat=len(toggles)):
        words = {t[0] for t, c in zip(toggles, chosen, strict=True) if c}
        if not {"store", "wait"} <= words and ("rows" in words or "wait" not in words):
            yield frozenset([*words, *(["split"] * split)])


def _evaluate(work: Statements, structure: Structure, target: Target) -> list[Option]:
    """The options of one structure, at every combination of its steps."""
    try:
        layout = Layout(build(work, structure.schedule))
    except NoNestError:
        return []
    combos = np.array(list(product(*structure.steps)), dtype=np.int64)
    columns = {axis: n for n, group in enumerate(structure.axes) for axis in group}
    step: Steps = {}
    for b in blocks(layout.builder.root):
        assert b.label is not None
        step[id(b)] = own_step(b, combos[:, columns[(b.label.name, b.tile)]] * b.times, step)
    able = np.ones(len(combos), dtype=bool)
    for b in blocks(layout.builder.root):
        able &= _even(b, step)
    combos, step = combos[able], {b: s[able] for b, s in step.items()}
    peak = np.zeros((len(layout.order), len(combos)), dtype=np.int64)
    for s in layout.storages.values():
        if s.over is not None or s.ahead is not None or s.instance.slot:
            continue
        size = np.full(len(combos), 4, dtype=np.int64)
        for a, origin in zip(s.instance.along, s.origins, strict=True):
            size *= a.size if origin is None else np.minimum(a.size, step[id(origin)] * a.factor)
        peak[s.first:s.last + 1] += -(-size // ALIGNMENT) * ALIGNMENT
    for n, p in enumerate(layout.order):
        peak[n] += _scratch(layout, p, step, len(combos))
    macs, time = steps_work(layout.order, step, len(combos), target)
    scratch = peak.max(axis=0) if len(layout.order) else np.zeros(len(combos), dtype=np.int64)
    over = layout.over()
    out = []
    for k, combo in enumerate(combos):
        loops = []
        seen: set[str] = set()
        for name, _ in structure.schedule.loops:
            loops.append((name, int(combo[columns[(name, name in seen)]])))
            seen.add(name)
        out.append(Option(str(Schedule(tuple(loops), structure.schedule.choices)), int(scratch[k]), int(macs[k]),
                          int(time[k]), over))
    return out


def _even(b: Block, step: Steps) -> np.ndarray:
    """Where a loop, if its last tile is by itself, has several of one size."""
    assert b.label is not None
    if not b.part:
        return np.ones(len(step[id(b)]), dtype=bool)
    return (b.label.size % step[id(b)] == 0) & (b.label.size > step[id(b)])


def _scratch(layout: Layout, p: Placed, step: Steps, count: int) -> np.ndarray:
    """The kernel's own scratch, which depends on few of the steps."""
    s = p.statement
    if type(s.op).scratch is Op.scratch:
        return np.zeros(count, dtype=np.int64)
    extents = window(p, step)
    if not extents:
        return np.full(count, layout.kernel_scratch(p), dtype=np.int64)
    table = np.stack(list(extents.values()), axis=1)
    distinct, inverse = np.unique(table, axis=0, return_inverse=True)
    values = [_scratch_of(s, tuple(zip(extents, map(int, row), strict=True))) for row in distinct]
    return (-(-np.array(values, dtype=np.int64) // ALIGNMENT) * ALIGNMENT)[inverse.reshape(-1)]


def _scratch_of(s: Statement, extents: tuple[tuple[str, int], ...]) -> int:
    """Of one call on windows; the same for all calls that look alike to the operation."""
    key = (s.op.name, tuple(s.sizes.items()), tuple(sorted(s.site.parts.items())), s.site.wants,
           tuple(sorted(s.site.attrs.items())), extents)
    if key not in _SCRATCH:
        _SCRATCH[key] = s.op.scratch(s.op.window(s.site, dict(extents)))
    return _SCRATCH[key]


_SCRATCH: dict[tuple[object, ...], int] = {}
