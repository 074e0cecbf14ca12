"""The nest run on sets of elements instead of numbers: which hold what, at each call."""

from __future__ import annotations

from bisect import bisect_left

from compilation.regions.judged import Called, Judged, Memory, Tensor, Use
from compilation.regions.loops import Loop, TileCall
from compilation.regions.windows import Scope


class Execution:
    """The nest, run on sets of elements."""

    def __init__(self, known: Judged) -> None:
        self.known, self.fail = known, known.fail
        self.calls = known.calls
        self.tensors = known.tensors
        self.together: dict[Memory, list[Tensor]] = {}
        for t in self.tensors.values():
            if t not in known.work.values():
                self.together.setdefault(t.memory, []).append(t)
        self._choose()
        self.roots: dict[str, str] = {}
        self.fresh: dict[int, list[Tensor]] = {}
        for t in self.tensors.values():
            for loop in t.home:
                self.fresh.setdefault(id(loop), []).append(t)

    # -- which elements are followed ------------------------------------------------------------------
    def _choose(self) -> None:
        tiles: dict[str, set[int]] = {}             # loop over a whole index -> elements
        follows: dict[tuple[Memory, int], set[tuple[str, int]]] = {}
        chosen: dict[tuple[Memory, int], set[int]] = {}
        for c in self.calls.values():
            for use in (*c.reads, *c.writes):
                for n, axis in enumerate(use.spots):
                    key = (use.tensor.memory, n)
                    ends = chosen.setdefault(key, {0})
                    if axis.loop:
                        root = c.scope.root(axis.loop).variable
                        follows.setdefault(key, set()).add((root, axis.factor))
                        starts = _starts(c.scope, axis.loop)
                        near = {p + d for p in starts for d in (-axis.ahead, axis.ahead)}      # whose strip, whose place
                        tiles.setdefault(root, set()).update(starts, (p for p in near if 0 <= p < c.scope.root(root).extent))
                    else:
                        ends |= {axis.size - 1, axis.size}
        extents = {loop.variable: loop.extent for c in self.calls.values() for loop in c.around if not loop.parent}
        for loop in extents:
            tiles.setdefault(loop, {0})
        grown = True
        while grown:
            grown = False
            for key, loops in follows.items():
                for v, factor in loops:
                    more = {i * factor for i in tiles[v]} - chosen[key]
                    less = {p // factor for p in chosen[key] if p // factor < extents[v]} - tiles[v]
                    chosen[key] |= more
                    tiles[v] |= less
                    grown = grown or bool(more or less)
        self.tiles = {v: sorted(i for i in found if i < extents[v]) for v, found in tiles.items()}
        self.chosen = {key: sorted(found) for key, found in chosen.items()}
        self.limits: dict[tuple[Memory, int], int] = {}
        for c in self.calls.values():
            for use in (*c.reads, *c.writes):
                for n, (axis, size) in enumerate(zip(use.axes, self.known.size(c, use), strict=True)):
                    key = (use.tensor.memory, n)
                    full = c.scope.full(axis) if axis.origin else size
                    self.limits[key] = max(self.limits.get(key, 0), full)
        self.chosen = {k: [p for p in v if p < self.limits[k]] for k, v in self.chosen.items()}

    # -- running ----------------------------------------------------------------------------------------
    def run(self) -> None:
        for t in self.tensors.values():
            if t.kind == "input" and t.uses:
                t.valid = self._all(t)
        for item in self.known.nest.body:
            self._item(item, {}, {})
        self.known.at = ""
        for t in self.tensors.values():
            if t.kind == "output" and (not t.uses or t.valid != self._all(t)):
                self.fail(f"{t.name} is not made wholly" + (f": {t.by} stands in it" if t.by else ""))
            if t.name in self.known.updates and (not t.uses or t.valid):
                self.fail(f"{t.name} is not updated wholly")

    def _all(self, t: Tensor) -> int:
        return (1 << len(self.chosen[t.memory, 0]) * len(self.chosen[t.memory, 1])) - 1

    def _item(self, item: Loop | TileCall, at: dict[str, int], ends: dict[str, int]) -> None:
        if isinstance(item, TileCall):
            self._call(self.calls[id(item)], at, ends)
            return
        root, (begin, end) = item.variable, item.span
        if item.parent:
            root, begin, end = self.roots[item.parent], at[item.parent], ends[item.parent]
        self.roots[item.variable] = root
        elements = self.tiles[root]
        last = -1
        for p in elements[bisect_left(elements, begin):bisect_left(elements, end)]:
            start = p - (p - begin) % item.step
            if start == last:
                continue
            last = start
            for t in self.fresh.get(id(item), ()):
                t.valid = t.read = t.open = 0
            at[item.variable], ends[item.variable] = start, min(start + item.step, end)
            for child in item.body:
                self._item(child, at, ends)

    def _mask(self, use: Use, at: dict[str, int], ends: dict[str, int]) -> int:
        key = tuple([at[v] for v in use.loops])
        found = use.masks.get(key)
        if found is None:
            spans = []
            for n, axis in enumerate(use.spots):
                begin, end = (at[axis.loop] * axis.factor, ends[axis.loop] * axis.factor) if axis.loop else (0, axis.size)
                if axis.ahead:
                    begin += axis.ahead * axis.factor
                    end = begin + axis.size
                elements = self.chosen[use.tensor.memory, n]
                spans.append((bisect_left(elements, begin), bisect_left(elements, end)))
            (r0, r1), (c0, c1) = spans
            width = len(self.chosen[use.tensor.memory, 1])
            row = ((1 << c1 - c0) - 1) << c0
            found = row * (((1 << width * (r1 - r0)) - 1) // ((1 << width) - 1)) << r0 * width      # once in each row
            use.masks[key] = found
        return found

    def _call(self, c: Called, at: dict[str, int], ends: dict[str, int]) -> None:
        self.known.at = c.name
        call = c.call
        adds = {slot: not over or any(self._later(c, v, at) for v in over) for slot, over in call.adds.items()}
        begun = any(at[v] != 0 for v in call.carried.values())
        done = all(ends[v] == c.scope.root(v).extent for v in call.carried.values())
        read = []
        for use in c.reads:
            t, mask = use.tensor, self._mask(use, at, ends)
            if use.slot in c.op.once and any(adds.values()):
                continue
            if mask & ~t.valid:
                why = f"where {t.by} has taken its place" if t.by else \
                    "after its update" if t.kind == "input" else "before it is written"
                self.fail(f"slot {use.slot} reads {t.name} {why}")
            if mask & t.open:
                self.fail(f"slot {use.slot} reads {t.name} before the last tile has come")
            read.append((use, mask))
        for use, mask in read:
            use.tensor.read |= mask
        for use in c.writes:
            self._write(c, use, self._mask(use, at, ends), adds.get(use.slot, False), begun, done, read)

    @staticmethod
    def _later(c: Called, variable: str, at: dict[str, int]) -> bool:
        loop = c.scope.loops[variable]
        return at[variable] != (at[loop.parent] if loop.parent else loop.span[0])

    def _write(self, c: Called, use: Use, mask: int, add: bool, begun: bool, done: bool,
               read: list[tuple[Use, int]]) -> None:
        t = use.tensor
        if use.update:
            if mask & ~t.valid:
                self.fail(f"it updates {t.name}, which has been updated")
            t.valid &= ~mask
            return
        if add or begun:
            if mask & ~t.valid:
                why = f"where {t.by} has taken its place" if t.by else "before it is written"
                self.fail(f"it adds to {t.name} {why}")
            if mask & t.read:
                self.fail(f"it adds to {t.name}, which was read before: the sum was still open")
        elif mask & t.valid:
            self.fail(f"it writes {t.name} a second time")
        for r, other in read:
            if r.tensor is t or not mask & other or r.tensor.memory != t.memory:
                continue
            over = c.op.may_alias(c.site).get(use.slot) == r.slot or c.op.pointwise(r.slot, use.slot)
            if not over or mask != other or r.axes != use.axes:
                self.fail(f"{t.name} may not take the place of {r.tensor.name} here")
        for u in self.together[t.memory]:
            if u is not t and u.valid & mask:
                u.valid &= ~mask
                u.by = t.name
        t.valid |= mask
        t.open = t.open & ~mask if done else t.open | mask
        if not (add or begun):
            t.read &= ~mask


def _starts(scope: Scope, variable: str) -> set[int]:
    """Where the first, second and last tiles begin, in such tiles of the outer loops; and the last element, and what is next
    to a part of the index that a loop walks."""
    loop = scope.loops[variable]
    outer = [loop.span]
    if loop.parent:
        over, step, extent = sorted(_starts(scope, loop.parent)), scope.loops[loop.parent].step, scope.root(variable).extent
        outer = [(p - p % step, min(p - p % step + step, extent)) for p in over]
    found = set()
    for begin, end in outer:
        found |= {begin, min(begin + loop.step, end - 1), begin + (end - 1 - begin) // loop.step * loop.step, end - 1}
    walked = scope.root(variable)
    begin, end = walked.span
    return found | ({begin - 1, end, walked.extent - 1, 0} & set(range(walked.extent)) if walked.part else set())
