"""The judge of nests: that one computes something whole, whatever made it. It knows windows, indices and nothing of schedules.

Some things are seen from the text: names, shapes against the index lines, sums of which a loop holds only shares, storage that
is shared in time. The others are seen by running it on sets instead of numbers: which elements hold what, at each call. It is
enough to follow a few elements: each axis is represented by those at which some loop's first, second and last tiles begin and
by its last one, and a loop runs the tiles that one of these is in. For a window is everything, or the present tile, of an
axis: an element that is no tile's first is treated as its tile's first one is, and a tile between the second and the last is
preceded and followed by others just as the second is. What can go wrong at a border of tiles, from one tile to the next, or
in the last, shorter one is all there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NoReturn

from compilation.errors import VerificationError
from compilation.ops import REGISTRY, Op, Site
from compilation.regions.loops import PANEL, ROWS, Axis, Loop, Nest, Stored, TileCall, Window
from compilation.regions.windows import Parts, Place, Poly, Scope, Shape, call_extents, place, whole_site, windows
from compilation.types import F32

Memory = tuple[object, ...]


def judge(nest: Nest, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], parts: Parts | None = None,
          updates: Collection[str] = ()) -> None:
    """inputs, outputs: shapes of the region's slots, of parameters the whole; updates: the parameters that it has to update.

    Raises VerificationError naming the call, its module path and the tensor, where
    - a name is unknown or stands twice, or slots, shapes or layouts are not those of the operation,
    - a window leaves its storage, or two tensors that live at once overlap in it,
    - something is read that has not been written, not wholly summed up, or was written over; or is written twice,
    - a parameter is read, in a later iteration or call, after its update,
    - a result or an update is not made, or not of all elements and terms.
    """
    _Judge(nest, inputs, outputs, parts or {}, updates).run()


@dataclass(eq=False)
class _Tensor:
    """A slot of the region or a tensor of the nest. rows, cols: of its storage. uses: what touches it."""

    name: str
    shape: Shape
    layout: str = ROWS
    kind: str = "stored"                # stored | input | output
    stored: Stored | None = None
    uses: list[_Use] = field(default_factory=list)
    home: tuple[Loop, ...] = ()         # the loops in whose every iteration it begins anew
    shares: set[str] = field(default_factory=set)       # loops of whose sum it holds one tile's share
    valid: int = 0                      # elements that hold its values; of an input, that were not updated
    read: int = 0                       # elements that were read since they were written
    open: int = 0                       # elements whose kernel has not seen the last tile
    by: str = ""                        # what last took over some of its elements

    @property
    def rows(self) -> int:
        n = 1
        for size in self.shape[:-1]:
            n *= size
        return n

    @property
    def cols(self) -> int:
        return self.shape[-1] if self.shape else 1

    @cached_property
    def memory(self) -> Memory:
        """What has the same elements in the same places has the same memory."""
        if self.stored is None or self.stored.stands:
            return ("slot", self.stored.stands if self.stored else self.name)
        origins = tuple(a.origin for a in self.uses[0].axes) if self.uses else ()
        return (self.stored.offset, self.shape, self.layout, origins)


@dataclass(eq=False)
class _Use:
    """A slot's window. axes: always two. update: the parameter is updated."""

    slot: str
    tensor: _Tensor
    axes: tuple[Axis, Axis]
    place: Place
    write: bool
    update: bool = False
    masks: dict[tuple[int, ...], int] = field(default_factory=dict)


@dataclass(eq=False)
class _Called:
    """A call in its loops; n counts calls."""

    n: int
    call: TileCall
    op: Op
    scope: Scope
    around: tuple[Loop, ...]
    site: Site
    reads: list[_Use] = field(default_factory=list)
    writes: list[_Use] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"call {self.n} {self.call.op} ({self.call.where or 'no module path'})"


class _Judge:
    def __init__(self, nest: Nest, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], parts: Parts,
                 updates: Collection[str]) -> None:
        self.nest, self.parts, self.updates = nest, parts, updates
        self.tensors = {n: _Tensor(n, tuple(s), kind="input") for n, s in inputs.items()}
        self.tensors |= {n: _Tensor(n, tuple(s), kind="output") for n, s in outputs.items()}
        self.calls: dict[int, _Called] = {}     # id of the TileCall -> it
        self.users: dict[_Tensor, list[_Called]] = {}
        self.work: dict[int, _Tensor] = {}      # id of the TileCall -> its scratch
        self.at = ""

    def fail(self, text: str) -> NoReturn:
        raise VerificationError(f"{self.at}: {text}" if self.at else text)

    def run(self) -> None:
        self._stored()
        self._loops(self.nest.body, {})
        for around, call in self.nest.calls():
            self._call(call, around)
        self._homes()
        for c in self.calls.values():
            self.at = c.name
            self._sums(c)
        self.at = ""
        self._sharing()
        _Execution(self).run()

    # -- names and shapes ------------------------------------------------------------------------------
    def _stored(self) -> None:
        for name, s in self.nest.stored.items():
            if name in self.tensors or s.name != name:
                self.fail(f"{name}: a tensor of this name exists, or it calls itself {s.name}")
            if (s.offset is None) == (not s.stands):
                self.fail(f"{name} has to stand in the scratch or in a result: one of them")
            if s.stands and (s.stands not in self.tensors or self.tensors[s.stands].kind != "output"):
                self.fail(f"{name} stands in {s.stands}, which is no result")
            if s.stands and (self.tensors[s.stands].shape != s.type.shape or s.layout != ROWS):
                self.fail(f"{name} is no tensor of the shape of {s.stands}, in which it stands")
            if s.offset is not None and (s.offset < 0 or s.offset % F32.bytes or s.offset + s.type.bytes > self.nest.scratch):
                self.fail(f"{name} ({s.type.bytes} bytes at {s.offset}) is not within the {self.nest.scratch} bytes of scratch")
            self.tensors[name] = _Tensor(name, s.type.shape, s.layout, stored=s)

    def _loops(self, items: tuple[Loop | TileCall, ...], around: dict[str, Loop], seen: set[str] | None = None) -> None:
        seen = set() if seen is None else seen
        for loop in (i for i in items if isinstance(i, Loop)):
            self.at = f"loop {loop.variable}"
            if loop.variable in seen or not loop.variable.isidentifier():
                self.fail("another loop has this variable, or it is no name")
            seen.add(loop.variable)
            if loop.parent and loop.parent not in around:
                self.fail(f"its parent {loop.parent} is no loop around it")
            if not 1 <= loop.step <= loop.extent or (loop.parent and loop.extent != around[loop.parent].step):
                self.fail(f"it cannot go through {loop.extent} in steps of {loop.step}")
            self._loops(loop.body, {**around, loop.variable: loop}, seen)
        self.at = ""

    def _call(self, call: TileCall, around: tuple[Loop, ...]) -> None:
        n = len(self.calls)
        self.at = f"call {n} {call.op} ({call.where or 'no module path'})"
        op = REGISTRY.get(call.op)
        if op is None or not op.leaf:
            self.fail("there is no such leaf")
        if id(call) in self.calls:
            self.fail("this very call stands in the nest twice")
        scope = Scope.of(around)
        for slot, window in (*call.inputs.items(), *call.outputs.items(), *call.updates.items()):
            self._window(op, slot, window, scope)
        try:
            site = whole_site(call, scope, self.parts)
            extents, _ = call_extents(call, scope, site)
            op.check(site)
        except (ValueError, KeyError, IndexError) as error:
            self.fail(f"shapes do not fit: {error}")
        c = _Called(n, call, op, scope, around, site)
        self._slots(c)
        sizes = op.bind(site)
        for index, extent in extents.items():
            if index in op.line.whole and extent.number != sizes[index]:
                self.fail(f"index {index} is needed whole, but comes in tiles")
        self._uses(c)
        self._layouts(c, extents)
        self._scratch(c, {i: max(scope.values(e)) for i, e in extents.items()})
        self.calls[id(call)] = c

    def _window(self, op: Op, slot: str, window: Window, scope: Scope) -> None:
        if slot not in op.slots and f"d_{slot}" not in op.slots:
            self.fail(f"it has no slot {slot}")
        if window.tensor not in self.tensors:
            self.fail(f"slot {slot} names the unknown tensor {window.tensor}")
        if not 1 <= len(window.axes) <= 2:
            self.fail(f"the window of {window.tensor} has {len(window.axes)} axes, not one or two")
        for axis in window.axes:
            for v in (axis.start, axis.origin):
                if v and v not in scope.loops:
                    self.fail(f"{window.tensor} follows {v}, which is no loop around the call")
            if axis.start and axis.origin and scope.root(axis.start) is not scope.root(axis.origin):
                self.fail(f"{window.tensor} follows {axis.start}, its storage {axis.origin}: no loops of one index")
            if axis.loop and axis.size != min(scope.loops[axis.loop].step * axis.factor, scope.full(axis)):
                self.fail(f"{window.tensor}: a tile of {axis.loop} has not {axis.size} elements")

    def _slots(self, c: _Called) -> None:
        """Declared slots only, and all that are needed."""
        op, call = c.op, c.call
        wants = c.site.wants
        for s in op.inputs:
            if not s.optional and s.name not in call.inputs and s.name != op.own_update \
                    and (s.name not in op.needed_for or set(op.needed_for[s.name]) & wants):
                self.fail(f"required slot {s.name} is absent")
        ins, outs = {s.name for s in op.inputs}, {s.name for s in op.outputs}
        if not call.inputs.keys() <= ins or not call.outputs.keys() <= outs or not set(call.updates) <= op.updatable():
            self.fail("a slot is not the operation's, or on the wrong side")
        if not (call.outputs or call.updates):
            self.fail("it makes nothing")
        for name in call.attrs:
            if name not in op.attrs or (name in op.legal and call.attrs[name] not in op.legal[name]):
                self.fail(f"attribute {name} is unknown, or has no legal value")
        for slot, over in call.adds.items():
            if slot not in call.outputs or slot not in op.adds or any(v not in c.scope.loops for v in over):
                self.fail(f"it cannot add to {slot} over {', '.join(over) or 'all'}")
        for index, slots in op.carried.items():
            tiled = self._followed(c, index)
            if bool(tiled) != (index in call.carried) and not (index in call.carried and c.scope.single(call.carried[index])):
                self.fail(f"index {index} comes {'in tiles, but' if tiled else 'at once, yet'} the state is "
                          f"{'not ' if tiled else ''}carried")
            if tiled and (call.carried[index] not in tiled or any(s not in call.outputs for s in slots)):
                self.fail(f"over the tiles of {index} it carries {', '.join(slots)}, which it does not have")
        for index in call.carried:
            if index not in op.carried:
                self.fail(f"it carries nothing over {index}")

    def _followed(self, c: _Called, index: str) -> set[str]:
        """The loops, outer ones of the same index included, that tile an index of the operation."""
        found = set()
        for slot, window in windows(c.call).items():
            axes = c.op.line.axes.get(slot, ())
            for axis, along in zip(axes[-len(window.axes):], window.axes[-len(axes):] if axes else (), strict=False):
                if axis.index == index and along.loop:
                    found |= self._chain(c.scope, along.loop)
        return found

    @staticmethod
    def _chain(scope: Scope, variable: str) -> set[str]:
        """A loop and the loops that it walks tiles of, those with one tile excepted."""
        found = set()
        while variable:
            if not scope.single(variable):
                found.add(variable)
            variable = scope.loops[variable].parent
        return found

    def _uses(self, c: _Called) -> None:
        op, call = c.op, c.call
        groups = ((call.inputs, False, False), (call.outputs, True, False), (call.updates, True, True))
        for found, write, update in groups:
            for slot, window in found.items():
                t = self.tensors[window.tensor]
                axes = window.axes if len(window.axes) == 2 else (Axis(1), window.axes[0])
                use = _Use(slot, t, axes, place(window, t.shape, t.layout, c.scope), write, update)  # type: ignore[arg-type]
                if update and (t.kind != "input" or window.tensor not in self.updates):
                    self.fail(f"it updates {window.tensor}, which is no parameter to be updated")
                if write and not update and t.kind == "input":
                    self.fail(f"it writes {window.tensor}, which is an input")
                self._coordinates(c, use)
                if write or self._reads_values(op, slot, c.site.wants):
                    t.uses.append(use)
                    (c.writes if write else c.reads).append(use)
                if t.uses and [a.origin for a in t.uses[0].axes] != [a.origin for a in axes] and use in t.uses:
                    self.fail(f"{t.name} follows {[a.origin for a in axes]} here, elsewhere {[a.origin for a in t.uses[0].axes]}")

    @staticmethod
    def _reads_values(op: Op, slot: str, wants: frozenset[str]) -> bool:
        """Whether the numbers are read: of a matrix whose gradients alone are made, only which of it is trained."""
        if op.slots[slot].kind == "matrix" and wants and all(op.slots[w].sink for w in wants if w in op.slots):
            return not any(w in op.slots for w in wants)
        return slot not in op.needed_for or bool(set(op.needed_for[slot]) & wants)

    def size(self, c: _Called, use: _Use) -> tuple[int, int]:
        """Rows and columns of what a window is a window of: of a gradient of a matrix, the whole matrix."""
        if use.slot in c.op.slots and c.op.slots[use.slot].kind == "matrix" and use.slot in c.call.outputs:
            shape = self.tensors[c.call.inputs[use.slot.removeprefix("d_")].tensor].shape
            return shape[0], shape[1]
        return use.tensor.rows, use.tensor.cols

    def _coordinates(self, c: _Called, use: _Use) -> None:
        """Windows end where their storage does, and tiles together are all of it."""
        t = use.tensor
        for n, (axis, size) in enumerate(zip(use.axes, self.size(c, use), strict=True)):
            full = c.scope.full(axis)
            what = f"{t.name}, axis {n}: "
            if axis.origin:
                capacity = min(c.scope.loops[axis.origin].step * axis.factor, full)
                if capacity != size:
                    self.fail(f"{what}tiles of {axis.origin} need {capacity} elements, not {size}")
                if axis.start and axis.start != axis.origin and axis.origin not in self._chain(c.scope, axis.start) | {""}:
                    if not c.scope.single(axis.origin):
                        self.fail(f"{what}{axis.start} walks no tile of {axis.origin}")
            elif full > size or (axis.loop and full != size):
                self.fail(f"{what}the window reaches to {full}, the storage to {size}")
        if use.slot in c.call.outputs and c.op.slots[use.slot].kind == "matrix":
            name = c.call.inputs[use.slot.removeprefix("d_")].tensor
            rows, cols = self.tensors[name].shape
            axis_, k = self.parts.get(name, ("rows", rows))
            wanted = (rows, k) if axis_ == "cols" else (k, cols)
            if (t.rows, t.cols) != wanted or any(a.origin for a in use.axes):
                self.fail(f"{t.name} is {list(t.shape)}, the gradient of {name} {list(wanted)}")

    def _layouts(self, c: _Called, extents: Mapping[str, Poly]) -> None:
        for use in (*c.reads, *c.writes):
            wanted = c.op.layout.get(use.slot)
            step = use.place.row if wanted == PANEL else use.place.col
            one = c.scope.values(use.place.rows) == {1}
            if wanted and step.number != 1 and not one:
                self.fail(f"slot {use.slot} takes {wanted}, but {use.tensor.name} is {use.tensor.layout}")
        for index, limit in c.op.limit.items():
            if max(c.scope.values(extents[index])) > limit:
                self.fail(f"it takes at most {limit} of index {index} at a time")

    def _scratch(self, c: _Called, largest: dict[str, int]) -> None:
        need = c.op.scratch(c.op.window(c.site, largest))
        s = self.nest.stored.get(c.call.scratch)
        if c.call.scratch and (s is None or s.offset is None or self.tensors[s.name].uses):
            self.fail(f"{c.call.scratch} is no scratch of its own")
        if need > (s.type.bytes if s else 0):
            self.fail(f"it needs {need} bytes of scratch and has {s.type.bytes if s else 0}")
        if s is not None:
            axes = (Axis(1), Axis(s.type.shape[-1]))
            t = self.tensors[s.name]
            t.uses.append(_Use("scratch", t, axes, place(Window(s.name, axes), t.shape, ROWS, c.scope), True))
            self.work[id(c.call)] = t

    # -- loops and sums ----------------------------------------------------------------------------------
    def _homes(self) -> None:
        """The loops that all uses of a tensor stand in, but for those that it is summed or carried over."""
        for c in self.calls.values():
            for use in (*c.reads, *c.writes):
                self.users.setdefault(use.tensor, []).append(c)
            if id(c.call) in self.work:
                self.users.setdefault(self.work[id(c.call)], []).append(c)
        for t, users in self.users.items():
            if t.kind != "stored":
                continue
            home = list(users[0].around)
            across = set()
            for c in users:
                shared = zip(home, c.around, strict=False)
                home = [a for n, (a, b) in enumerate(shared) if a is b and home[:n] == list(c.around[:n])]
                if any(u.tensor is t for u in c.writes):
                    for u in c.writes:
                        if u.tensor is t:
                            across |= set(c.call.adds.get(u.slot, ()))
                    for variable in c.call.carried.values():
                        across |= self._chain(c.scope, variable)
            cut = next((n for n, loop in enumerate(home) if loop.variable in across), len(home))
            t.home = tuple(home[:cut])

    def _sums(self, c: _Called) -> None:
        """Of what loops each result holds only a share: such may be read by what is linear in it and sums it up."""
        carried = {i for i in c.call.carried}
        for use in c.writes:
            slot = f"d_{use.slot}" if use.update and use.slot != c.op.own_update else use.slot
            total: set[str] = set()
            for index in c.op.summed(slot) if slot in c.op.line.axes else ():
                total |= self._followed(c, index) if index not in carried else set()
            for r in c.reads:
                needed = slot not in c.op.slots or slot in c.op.needed_for.get(r.slot, (slot,))
                if not (r.tensor.shares and needed):
                    continue
                inside = {loop.variable for loop in c.around}
                if missing := r.tensor.shares - inside:
                    self.fail(f"{r.tensor.name} is summed over {', '.join(sorted(missing))}, and read as a whole")
                if slot not in c.op.linear.get(r.slot, ()):
                    self.fail(f"{r.tensor.name} is only a share of a sum over {', '.join(sorted(r.tensor.shares))}, "
                              f"and {slot} is not linear in it")
                total |= r.tensor.shares
            drives = {v for a in use.axes if a.loop for v in self._chain(c.scope, a.loop)}
            over = c.call.adds.get(use.slot) if not use.update else None
            beyond = {loop.variable for loop in c.around[len(use.tensor.home):] if not c.scope.single(loop.variable)}
            if over is not None:
                doubled = (set(over) & beyond if over else beyond) - total - drives
                if doubled:
                    self.fail(f"it adds the same to {use.tensor.name} in each iteration of {', '.join(sorted(doubled))}")
                if unread := [s for s in c.op.once if s in c.call.inputs and not over]:
                    self.fail(f"it always adds, so that {unread[0]} is never read")
                total -= set(over) if over else beyond
            if total and use.tensor.kind != "stored":
                self.fail(f"{use.tensor.name} gets only a share of the sum over {', '.join(sorted(total))}")
            use.tensor.shares |= total

    # -- storage -----------------------------------------------------------------------------------------
    def _sharing(self) -> None:
        """No two tensors overlap in scratch while both live, but those in the very same place, which are followed."""
        order: dict[int, tuple[int, int]] = {}

        def number(items: tuple[Loop | TileCall, ...], n: int) -> int:
            for item in items:
                first, n = n, number(item.body, n) if isinstance(item, Loop) else n + 1
                order[id(item)] = (first, n)
            return n

        number(self.nest.body, 0)
        lives = []
        for t, users in self.users.items():
            if t.stored is None or t.stored.offset is None:
                continue
            spans = [order[id((*c.around, c.call)[len(t.home)])] for c in users]
            lives.append((t, t.stored.offset, t.stored.offset + t.stored.type.bytes, min(a for a, _ in spans),
                          max(b for _, b in spans)))
        for i, (t, low, high, first, last) in enumerate(lives):
            for u, low2, high2, first2, last2 in lives[:i]:
                if low < high2 and low2 < high and first < last2 and first2 < last and t.memory != u.memory:
                    self.fail(f"{t.name} (bytes {low} to {high}) overlaps {u.name} ({low2} to {high2}), and both live at once")


class _Execution:
    """The nest, run on sets of elements."""

    def __init__(self, judge: _Judge) -> None:
        self.judge, self.fail = judge, judge.fail
        self.calls = judge.calls
        self.tensors = judge.tensors
        self.together: dict[Memory, list[_Tensor]] = {}
        for t in self.tensors.values():
            if t not in judge.work.values():
                self.together.setdefault(t.memory, []).append(t)
        self._choose()
        self.roots: dict[str, str] = {}
        self.fresh: dict[int, list[_Tensor]] = {}
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
                for n, axis in enumerate(use.axes):
                    key = (use.tensor.memory, n)
                    ends = chosen.setdefault(key, {0})
                    if axis.loop:
                        root = c.scope.root(axis.loop).variable
                        follows.setdefault(key, set()).add((root, axis.factor))
                        tiles.setdefault(root, set()).update(_starts(c.scope, axis.loop))
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
                for n, (axis, size) in enumerate(zip(use.axes, self.judge.size(c, use), strict=True)):
                    key = (use.tensor.memory, n)
                    full = c.scope.full(axis) if axis.origin else size
                    self.limits[key] = max(self.limits.get(key, 0), full)
        self.chosen = {k: [p for p in v if p < self.limits[k]] for k, v in self.chosen.items()}

    # -- running ----------------------------------------------------------------------------------------
    def run(self) -> None:
        for t in self.tensors.values():
            if t.kind == "input" and t.uses:
                t.valid = self._all(t)
        for item in self.judge.nest.body:
            self._item(item, {}, {})
        self.judge.at = ""
        for t in self.tensors.values():
            if t.kind == "output" and (not t.uses or t.valid != self._all(t)):
                self.fail(f"{t.name} is not made wholly" + (f": {t.by} stands in it" if t.by else ""))
            if t.name in self.judge.updates and (not t.uses or t.valid):
                self.fail(f"{t.name} is not updated wholly")

    def _all(self, t: _Tensor) -> int:
        return (1 << len(self.chosen[t.memory, 0]) * len(self.chosen[t.memory, 1])) - 1

    def _item(self, item: Loop | TileCall, at: dict[str, int], ends: dict[str, int]) -> None:
        if isinstance(item, TileCall):
            self._call(self.calls[id(item)], at, ends)
            return
        root, begin, end = item.variable, 0, item.extent
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

    def _mask(self, use: _Use, at: dict[str, int], ends: dict[str, int]) -> int:
        key = tuple(at[a.loop] for a in use.axes if a.loop)
        found = use.masks.get(key)
        if found is None:
            spans = []
            for n, axis in enumerate(use.axes):
                begin, end = (at[axis.loop] * axis.factor, ends[axis.loop] * axis.factor) if axis.loop else (0, axis.size)
                elements = self.chosen[use.tensor.memory, n]
                if not axis.loop and end == (use.tensor.rows, use.tensor.cols)[n]:
                    end = self.limits[use.tensor.memory, n]         # all, be it the part of a matrix that is trained
                spans.append((bisect_left(elements, begin), bisect_left(elements, end)))
            (r0, r1), (c0, c1) = spans
            width = len(self.chosen[use.tensor.memory, 1])
            row = ((1 << c1 - c0) - 1) << c0
            found = sum(row << r * width for r in range(r0, r1))
            use.masks[key] = found
        return found

    def _call(self, c: _Called, at: dict[str, int], ends: dict[str, int]) -> None:
        self.judge.at = c.name
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
                why = "after its update" if t.kind == "input" else f"where {t.by} has taken its place" if t.by and not \
                    mask & t.valid else "before it is written" + (f", or after {t.by} has taken its place" if t.by else "")
                self.fail(f"slot {use.slot} reads {t.name} {why}")
            if mask & t.open:
                self.fail(f"slot {use.slot} reads {t.name} before the last tile has come")
            read.append((use, mask))
        for use, mask in read:
            use.tensor.read |= mask
        for use in c.writes:
            self._write(c, use, self._mask(use, at, ends), adds.get(use.slot, False), begun, done, read)

    @staticmethod
    def _later(c: _Called, variable: str, at: dict[str, int]) -> bool:
        parent = c.scope.loops[variable].parent
        return at[variable] != (at[parent] if parent else 0)

    def _write(self, c: _Called, use: _Use, mask: int, add: bool, begun: bool, done: bool,
               read: list[tuple[_Use, int]]) -> None:
        t = use.tensor
        if use.update:
            if mask & ~t.valid:
                self.fail(f"it updates {t.name}, which has been updated")
            t.valid &= ~mask
            return
        if add or begun:
            if mask & ~t.valid:
                self.fail(f"it adds to {t.name} {'where ' + t.by + ' has taken its place' if t.by else 'before it is written'}")
            if mask & t.read:
                self.fail(f"it adds to {t.name}, which was read before: the sum was still open")
        elif mask & t.valid:
            self.fail(f"it writes {t.name} a second time")
        for r, other in read:
            if r.tensor is not t and r.tensor.memory == t.memory and mask & other:
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
    """Where the first, second and last tiles begin, in such tiles of the outer loops; and the last element."""
    loop = scope.loops[variable]
    outer = [(0, loop.extent)]
    if loop.parent:
        over, step, extent = sorted(_starts(scope, loop.parent)), scope.loops[loop.parent].step, scope.root(variable).extent
        outer = [(p - p % step, min(p - p % step + step, extent)) for p in over]
    found = set()
    for begin, end in outer:
        found |= {begin, min(begin + loop.step, end - 1), begin + (end - 1 - begin) // loop.step * loop.step, end - 1}
    return found
