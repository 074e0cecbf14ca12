"""The judge of nests: that one computes something whole, whatever made it. It knows windows and indices, no schedules.

Some things are seen from the text: names, shapes against the index lines, sums of which a loop holds only shares, storage
that is shared in time. The others are seen by running it on sets instead of numbers: which elements hold what, at each call.
It is enough to follow a few elements: each axis is represented by those at which some loop's first, second and last tiles
begin and by its last one, and a loop runs the tiles that one of these is in. For a window is all, or the present tile, of
an axis: an element that is no tile's first is treated as its tile's first one is, and a tile between the second and the
last is preceded and followed by others just as the second is. What can go wrong at a border of tiles, from one tile to the
next, or in the last, shorter one is all there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from compilation.ops import REGISTRY, Op
from compilation.regions.judge_run import Execution
from compilation.regions.judge_time import check_sharing, check_sums, find_homes
from compilation.regions.judged import Called, Judged, Tensor, Use, chain
from compilation.regions.loops import PANEL, ROWS, Axis, Loop, Nest, Stored, TileCall, Window
from compilation.regions.windows import Parts, Poly, Scope, Shape, call_extents, matrix_of, place, strip_of, whole_site
from compilation.types import F32


def judge(nest: Nest, inputs: Mapping[str, Shape], outputs: Mapping[str, Shape], parts: Parts | None = None,
          updates: Collection[str] = (), over: Mapping[str, str] | None = None) -> None:
    """inputs, outputs: shapes of the region's slots, of parameters the whole; updates: the parameters that it has to update;
    over: result -> the input in whose place it is made.

    Raises VerificationError naming the call, its module path and the tensor, where
    - a name is unknown or stands twice, or slots, shapes or layouts are not those of the operation,
    - a window leaves its storage, or two tensors that live at once overlap in it,
    - something is read that has not been written, not wholly summed up, or was written over; or is written twice,
    - a parameter is read, in a later iteration or call, after its update,
    - a result or an update is not made, or not of all elements and terms.
    """
    known = Judged(nest, inputs, outputs, parts or {}, updates, over or {})
    _Text(known).run()
    find_homes(known)
    check_sums(known)
    check_sharing(known)
    Execution(known).run()


class _Text:
    """What is seen from the text: names, slots, shapes, layouts, scratch."""

    def __init__(self, known: Judged) -> None:
        self.known, self.nest, self.tensors, self.fail = known, known.nest, known.tensors, known.fail

    def run(self) -> None:
        self._stored()
        self._loops(self.nest.body, {}, set())
        for around, call in self.nest.calls():
            self._call(call, around)
        self.known.at = ""

    def _stored(self) -> None:
        for name, s in self.nest.stored.items():
            if name in self.tensors or s.name != name:
                self.fail(f"{name}: a tensor of this name exists, or it calls itself {s.name}")
            if (s.offset is None) == (not s.stands):
                self.fail(f"{name} has to stand in the scratch or in a result: one of them")
            if s.stands and (s.stands not in self.tensors or self.tensors[s.stands].kind != "output"):
                self.fail(f"{name} stands in {s.stands}, which is no result")
            if s.strip:
                self._strip(s)
            elif s.stands and (self.tensors[s.stands].shape != s.type.shape or s.layout != ROWS):
                self.fail(f"{name} is no tensor of the shape of {s.stands}, in which it stands")
            at, size = s.offset or 0, self.nest.scratch
            if at < 0 or at % F32.bytes or (not s.stands and at + s.type.bytes > size):
                self.fail(f"{name} ({s.type.bytes} bytes at {at}) is not within the {size} bytes of scratch")
            slot = self.tensors[s.stands].slot if s.stands else ""
            self.tensors[name] = Tensor(name, s.type.shape, s.layout, stored=s, slot=slot)

    def _strip(self, s: Stored) -> None:
        """Rows beside each other, as many as what it stands in has, in columns that it has in each iteration."""
        shape = self.tensors[s.stands].shape if s.stands else ()
        loops = {loop.variable: loop for around, _ in self.nest.calls() for loop in around}
        strip, loop = s.strip, loops.get(s.strip.start if s.strip else "")
        if strip is None or loop is None or loop.parent or strip.origin:
            self.fail(f"{s.name} stands in columns that follow no loop over a whole index")
        if len(s.type.shape) != 2 or len(shape) != 2 or s.layout != ROWS or s.type.shape != (shape[0], strip.size):
            self.fail(f"{s.name} is no {strip.size} columns of {s.stands}")
        begin, end = loop.span
        last = begin + (end - 1 - begin) // loop.step * loop.step
        if begin + strip.ahead < 0 or (last + strip.ahead) * strip.factor + strip.size > shape[1]:
            self.fail(f"{s.name} reaches beyond the {shape[1]} columns of {s.stands}")

    def _loops(self, items: tuple[Loop | TileCall, ...], around: dict[str, Loop], seen: set[str]) -> None:
        for loop in (i for i in items if isinstance(i, Loop)):
            self.known.at = f"loop {loop.variable}"
            if loop.variable in seen or not loop.variable.isidentifier():
                self.fail("another loop has this variable, or it is no name")
            seen.add(loop.variable)
            if loop.parent and loop.parent not in around:
                self.fail(f"its parent {loop.parent} is no loop around it")
            begin, end = loop.span
            if not 0 <= begin < end <= loop.extent or begin % loop.step or (loop.part and loop.parent):
                self.fail(f"it cannot go from {begin} to {end} of {loop.extent}")
            if not 1 <= loop.step <= end - begin or (loop.parent and loop.extent != around[loop.parent].step):
                self.fail(f"it cannot go through {loop.extent} in steps of {loop.step}")
            self._loops(loop.body, {**around, loop.variable: loop}, seen)
        self.known.at = ""

    def _call(self, call: TileCall, around: tuple[Loop, ...]) -> None:
        n = len(self.known.calls)
        self.known.at = f"call {n} {call.op} ({call.where or 'no module path'})"
        op = REGISTRY.get(call.op)
        if op is None or not op.leaf:
            self.fail("there is no such leaf")
        if id(call) in self.known.calls:
            self.fail("this very call stands in the nest twice")
        scope = Scope.of(around)
        for slot, window in (*call.inputs.items(), *call.outputs.items(), *call.updates.items()):
            self._window(op, slot, window, scope)
        try:
            site = whole_site(call, scope, self.known.parts)
            extents, _ = call_extents(call, scope, site)
            op.check(site)
        except (ValueError, KeyError, IndexError) as error:
            self.fail(f"shapes do not fit: {error}")
        c = Called(n, call, op, scope, around, site)
        self._slots(c)
        sizes = op.bind(site)
        for index, extent in extents.items():
            if index in op.line.whole and extent.number != sizes[index]:
                self.fail(f"index {index} is needed whole, but comes in tiles")
        self._uses(c)
        self._layouts(c, extents)
        self._scratch(c, {i: max(scope.values(e)) for i, e in extents.items()})
        self.known.calls[id(call)] = c

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
            if axis.ahead:
                self.fail(f"{window.tensor}: only a strip lies ahead of a loop")
            if axis.start and axis.origin and scope.root(axis.start) is not scope.root(axis.origin):
                self.fail(f"{window.tensor} follows {axis.start}, its storage {axis.origin}: no loops of one index")
            if axis.loop and axis.size != min(scope.loops[axis.loop].step * axis.factor, scope.full(axis)):
                self.fail(f"{window.tensor}: a tile of {axis.loop} has not {axis.size} elements")

    def _slots(self, c: Called) -> None:
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
            tiled = c.followed(index)
            at_once = index in call.carried and c.scope.whole(call.carried[index])
            if bool(tiled) != (index in call.carried) and not at_once:
                self.fail(f"index {index} comes {'in tiles, but' if tiled else 'at once, yet'} the state is "
                          f"{'not ' if tiled else ''}carried")
            if tiled and (call.carried[index] not in tiled or any(s not in call.outputs for s in slots)):
                self.fail(f"over the tiles of {index} it carries {', '.join(slots)}, which it does not have")
        for index in call.carried:
            if index not in op.carried:
                self.fail(f"it carries nothing over {index}")

    def _uses(self, c: Called) -> None:
        op, call = c.op, c.call
        groups = ((call.inputs, False, False), (call.outputs, True, False), (call.updates, True, True))
        for found, write, update in groups:
            for slot, window in found.items():
                t = self.tensors[window.tensor]
                axes = window.axes if len(window.axes) == 2 else (Axis(1), window.axes[0])
                strip = strip_of(t.stored, self.known.shapes)
                if strip:
                    self._in_strip(c, slot, t, axes)
                use = Use(slot, t, axes, place(window, t.shape, t.layout, c.scope, strip), write, update)
                if update and (t.kind != "input" or window.tensor not in self.known.updates):
                    self.fail(f"it updates {window.tensor}, which is no parameter to be updated")
                if write and not update and t.kind == "input":
                    self.fail(f"it writes {window.tensor}, which is an input")
                self._coordinates(c, use)
                if update and slot == op.own_update and op.slots[slot].kind != "matrix":
                    self._alike(c, use)
                if write or self._reads_values(op, slot, c.site.wants):
                    t.uses.append(use)
                    (c.writes if write else c.reads).append(use)
                here, elsewhere = ([a.origin for a in u.axes] for u in (use, t.uses[0] if t.uses else use))
                if here != elsewhere and use in t.uses:
                    self.fail(f"{t.name} follows the loops {here} here, elsewhere {elsewhere}")

    def _in_strip(self, c: Called, slot: str, t: Tensor, axes: tuple[Axis, ...]) -> None:
        """A strip has all rows, and each call all of its columns, in an iteration of the loop that it follows."""
        assert t.stored is not None and t.stored.strip is not None
        if t.stored.strip.start not in {loop.variable for loop in c.around}:
            self.fail(f"{t.name} follows {t.stored.strip.start}, which is no loop around the call")
        if c.op.slots[slot].kind != "tile" or axes[0].origin or axes[1].start != axes[1].origin:
            self.fail(f"{t.name} is a strip of {t.stored.stands}, and is no token matrix there with all its columns")

    def _alike(self, c: Called, update: Use) -> None:
        """A parameter is updated by a gradient of its own shape."""
        for use in c.reads:
            if use.place.extents != update.place.extents or update.tensor.name in self.known.parts:
                self.fail(f"it updates {update.tensor.name} by {use.tensor.name}, which is not of its shape")

    @staticmethod
    def _reads_values(op: Op, slot: str, wants: frozenset[str]) -> bool:
        """Whether the numbers are read: of a matrix whose gradients alone are made, only which of it is trained."""
        if op.slots[slot].kind == "matrix" and wants and all(op.slots[w].sink for w in wants if w in op.slots):
            return not any(w in op.slots for w in wants)
        return slot not in op.needed_for or bool(set(op.needed_for[slot]) & wants)

    def _coordinates(self, c: Called, use: Use) -> None:
        """Windows end where their storage does, and tiles together are all of it."""
        t = use.tensor
        matrix = matrix_of(c.op, use.slot) if not use.update else ""
        if t.gradient not in (None, bool(matrix)) and t.kind == "stored":
            self.fail(f"{t.name} is the gradient of a matrix at one call only")
        t.gradient = bool(matrix)
        for n, (axis, size) in enumerate(zip(use.axes, self.known.size(c, use), strict=True)):
            full = c.scope.full(axis)
            what = f"{t.name}, axis {n}: "
            part = axis.start != axis.origin and not c.scope.whole(axis.start or axis.origin)
            if matrix and t.kind == "stored" and part:
                self.fail(f"{what}it holds the gradient of one window alone, which does not follow {axis.start}")
            if axis.origin:
                capacity = min(c.scope.loops[axis.origin].step * axis.factor, full)
                if not matrix and capacity != size:
                    self.fail(f"{what}tiles of {axis.origin} need {capacity} elements, not {size}")
                inside = not axis.start or axis.origin in chain(c.scope, axis.start) or c.scope.whole(axis.origin)
                if axis.start != axis.origin and not inside:
                    self.fail(f"{what}{axis.start} walks no tile of {axis.origin}")
            elif full > size or (axis.loop and full != size):
                self.fail(f"{what}the window reaches to {full}, the storage to {size}")
        if matrix:
            self._gradient(c, use, {**c.call.inputs, **c.call.updates}[matrix].tensor)

    def _gradient(self, c: Called, use: Use, parameter: str) -> None:
        """Storage for a matrix's gradient: of the trained part, or of what can be trained of a window."""
        t, shape = use.tensor, list(self.tensors[parameter].shape)
        if parameter in self.known.parts:
            axis, trained = self.known.parts[parameter]
            shape[axis == "cols"] = trained
        if t.kind == "stored":
            shape = [min(n, max(c.scope.values(e))) for n, e in zip(shape, use.place.extents, strict=True)]
        if [t.rows, t.cols] != shape:
            self.fail(f"{t.name} is {list(t.shape)}, the gradient of {parameter} there {shape}")

    def _layouts(self, c: Called, extents: Mapping[str, Poly]) -> None:
        for use in (*c.reads, *c.writes):
            wanted = c.op.layout.get(use.slot)
            step = use.place.row if wanted == PANEL else use.place.col
            one = c.scope.values(use.place.rows) == {1}
            if wanted and step.number != 1 and not one:
                self.fail(f"slot {use.slot} takes {wanted}, but {use.tensor.name} is {use.tensor.layout}")
        for index, limit in c.op.limit.items():
            if max(c.scope.values(extents[index])) > limit:
                self.fail(f"it takes at most {limit} of index {index} at a time")

    def _scratch(self, c: Called, largest: dict[str, int]) -> None:
        need = c.op.scratch(c.op.window(c.site, largest))
        s = self.nest.stored.get(c.call.scratch)
        if c.call.scratch and (s is None or s.offset is None or self.tensors[s.name].uses):
            self.fail(f"{c.call.scratch} is no scratch of its own")
        if need > (s.type.bytes if s else 0) or (s and not need):
            self.fail(f"it needs {need} bytes of scratch and has {s.type.bytes if s else 0}")
        if s is not None:
            axes = (Axis(1), Axis(s.type.shape[-1]))
            t = self.tensors[s.name]
            t.uses.append(Use("scratch", t, axes, place(Window(s.name, axes), t.shape, ROWS, c.scope), True))
            self.known.work[id(c.call)] = t
