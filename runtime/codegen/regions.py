"""A region's nest as a C function: loops around kernel calls, each with a constant argument struct in a block of its own.

The function's own struct holds what differs from call to call: where its slots are. Sizes, strides and loop bounds are
numbers in its text, so that calls with the same nest share it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from compilation.ops import REGISTRY, Op, Slot
from compilation.regions.loops import ROWS, Loop, Nest, TileCall, Window
from compilation.regions.windows import Parts, Place, Poly, Scope, Shape, call_extents, place, strip_of, whole_site
from compilation.types import F32
from runtime.codegen.literals import attribute, gradient_slot
from runtime.errors import CodegenError

INDENT = "    "
RESERVED = {
    "region", "step", "args", "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else",
    "enum", "extern", "float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short",
    "signed", "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while"}
ABSENT = {"in": "{.at = 0, .row = 0, .col = 0}", "out": "{.at = 0, .row = 0, .col = 0, .add = 0}",
          "matrix": "{.frozen = {0, 0, 0, 0, 0}, .trained = {0, 0, 0, 0, 0}, .rows = 0, .cols = 0}",
          "sink": "{.grad = 0, .param = 0, .velocity = 0, .add = 0, .window = 0}"}


@dataclass(frozen=True)
class RegionSlots:
    """What a region's function is called with. fields: slot (a sink's is d_<parameter>) -> its declaration, in order."""

    fields: Mapping[str, str]
    shapes: Mapping[str, Shape]
    parts: Parts = field(default_factory=dict)
    momentum: bool = False

    @staticmethod
    def of(inputs: Iterable[Slot], outputs: Iterable[Slot], present: Collection[str], updates: Collection[str],
           shapes: Mapping[str, Shape], parts: Parts, momentum: bool) -> RegionSlots:
        """The slots that a call has, results and updates among `present`."""
        fields = {}
        for s in inputs:
            if s.name in present:
                fields[s.name] = f"vt_matrix {s.name}" if s.kind == "matrix" else f"const {s.element.c} *{s.name}"
        for s in outputs:
            if s.name in present and not s.sink:
                fields[s.name] = f"{s.element.c} *{s.name}"
            elif s.name in present or s.name.removeprefix("d_") in updates:
                fields[s.name] = f"vt_sink {s.name}"
        return RegionSlots(fields, shapes, parts, momentum)


@dataclass(frozen=True)
class RegionCode:
    """The C of one region under one schedule. fields: declarations of its struct; body: the lines of its function."""

    name: str
    fields: tuple[str, ...]
    body: tuple[str, ...]
    ops: tuple[str, ...]        # the operations that it calls
    title: str                  # for the comment above it


def region_code(name: str, nest: Nest, slots: RegionSlots, title: str) -> RegionCode:
    """Raises CodegenError where the nest has no C."""
    return _Writer(nest, slots).code(name, title)


class _Writer:
    def __init__(self, nest: Nest, slots: RegionSlots) -> None:
        self.nest, self.slots = nest, slots
        self.shapes = {**slots.shapes, **{n: s.type.shape for n, s in nest.stored.items()}}
        self.names = self._names()

    def code(self, name: str, title: str) -> RegionCode:
        fields = [*self.slots.fields.values(), *(["void *scratch"] if self.nest.scratch else [])]
        body = list(self._items(self.nest.body, {}, 1))
        ops = tuple(dict.fromkeys(call.op for _, call in self.nest.calls()))
        return RegionCode(name, tuple(fields), (*self._stored(), *body), ops, title.replace("*/", "* /"))

    def _names(self) -> dict[str, str]:
        """C names of the nest's own tensors, apart from those of its loops."""
        variables = {loop.variable for around, _ in self.nest.calls() for loop in around}
        if bad := variables & RESERVED:
            raise CodegenError(f"a loop is called {min(bad)}")
        taken = RESERVED | variables | {f"{v}_size" for v in variables}
        names = {}
        for stored in self.nest.stored:
            stem = name = re.sub(r"\W", "_", stored) if stored[0].isalpha() else re.sub(r"\W", "_", f"t_{stored}")
            n = 1
            while name in taken:
                n += 1
                name = f"{stem}_{n}"
            taken.add(name)
            names[stored] = name
        return names

    def _stored(self) -> Iterator[str]:
        used = {w.tensor for _, c in self.nest.calls() for w in (*c.inputs.values(), *c.outputs.values())}
        used |= {c.scratch for _, c in self.nest.calls()}
        for s in self.nest.stored.values():
            if s.name in used:
                where = _plus("(float *)region->scratch", Poly.of((s.offset or 0) // F32.bytes))
                if s.stands:
                    where = self._base(s.stands)
                yield f"{INDENT}float *const {self.names[s.name]} = {where};"

    # -- loops -----------------------------------------------------------------------------------------
    def _items(self, items: tuple[Loop | TileCall, ...], around: dict[str, Loop], depth: int) -> Iterator[str]:
        for item in items:
            yield from self._loop(item, around, depth) if isinstance(item, Loop) else self._call(item, Scope(around), depth)

    def _loop(self, loop: Loop, around: dict[str, Loop], depth: int) -> Iterator[str]:
        v, inside = loop.variable, {**around, loop.variable: loop}
        scope = Scope(inside)
        if scope.single(v):
            yield from self._items(loop.body, inside, depth)
            return
        body = list(self._items(loop.body, inside, depth + 1))
        begin, end = map(Poly.of, loop.span)
        if loop.parent:
            begin = scope.begin(loop.parent)
            end = begin + scope.size(loop.parent)
        yield f"{INDENT * depth}for (int32_t {v} = {begin}; {v} < {end}; {v} += {loop.step}) {{"
        if any(re.search(rf"\b{v}_size\b", line) for line in body):
            rest = end - Poly.of(v)
            yield f"{INDENT * (depth + 1)}const int32_t {v}_size = {rest} < {loop.step} ? {rest} : {loop.step};"
        yield from body
        yield f"{INDENT * depth}}}"

    # -- calls -----------------------------------------------------------------------------------------
    def _call(self, call: TileCall, scope: Scope, depth: int) -> Iterator[str]:
        op = REGISTRY[call.op]
        edge, inner = INDENT * depth, INDENT * (depth + 1)
        comment = f" /* {call.where.replace('*/', '* /')} */" if call.where else ""
        yield f"{edge}{{{comment}"
        yield f"{inner}const {op.symbol}_args args = {{"
        for name, value in self._fields(call, op, scope):
            yield f"{inner}{INDENT}.{name} = {value},"
        yield f"{inner}}};"
        yield f"{inner}{op.symbol}(&args, step);"
        yield f"{edge}}}"

    def _fields(self, call: TileCall, op: Op, scope: Scope) -> Iterator[tuple[str, str]]:
        """Every field of the kernel's struct: one that is left out would be cleared, and with it the whole struct first."""
        site = whole_site(call, scope, self.slots.parts)
        extents, begins = call_extents(call, scope, site)
        for s in op.inputs:
            if s.name == op.own_update:
                whole = s.kind == "matrix"      # of which the kernel is told what is trained, too
                if whole:
                    yield s.name, f"region->{call.updates[s.name].tensor}"
                yield s.name + "_sink" * whole, self._update(call.updates[s.name], scope, whole)
            else:
                yield s.name, self._input(s, call.inputs.get(s.name), scope)
        updates = {gradient_slot(slot): w for slot, w in call.updates.items()}
        for s in op.outputs:
            if s.name in updates:
                yield s.name, self._update(updates[s.name], scope, whole=s.kind == "matrix")
            else:
                yield s.name, self._output(s, call, scope)
        if type(op).scratch is not Op.scratch:
            yield "scratch", self.names[call.scratch] if call.scratch else "0"
        for attr, (kind, default) in op.fields.items():
            yield attr, attribute(attr, kind, call.attrs.get(attr, default))
        ends = self._ends(call, scope)
        absent = dict.fromkeys((*op.line.indices(op.line.axes), *(f"{n}_at" for n in op.placed)), 0)
        for name, number in {**absent, **op.dims(site)}.items():
            if name in ends:
                yield name, ends[name]
            elif name in extents:
                yield name, str(extents[name])
            elif name.removesuffix("_at") in begins:
                yield name, str(begins[name.removesuffix("_at")])
            else:
                yield name, str(number)

    @staticmethod
    def _ends(call: TileCall, scope: Scope) -> dict[str, str]:
        """Whether the call has the first, and the last, tile of what is carried."""
        for v in call.carried.values():
            if not scope.whole(v):
                end = scope.begin(v) + scope.size(v)
                return {"first": f"{scope.begin(v)} == 0", "last": f"{end} == {scope.root(v).extent}"}
        return {}

    def _place(self, window: Window, scope: Scope) -> Place:
        stored = self.nest.stored.get(window.tensor)
        layout, strip = stored.layout if stored else ROWS, strip_of(stored, self.shapes)
        return place(window, self.shapes[window.tensor], layout, scope, strip)

    def _base(self, tensor: str) -> str:
        """Where a tensor of the nest, or a slot, begins."""
        sink = self.slots.fields.get(tensor, "").startswith("vt_sink")
        return self.names.get(tensor, f"region->{tensor}" + ".grad" * sink)

    def _input(self, slot: Slot, window: Window | None, scope: Scope) -> str:
        if window is None:
            return {"tile": ABSENT["in"], "matrix": ABSENT["matrix"]}.get(slot.kind, "0")
        if slot.kind == "matrix":
            return f"region->{window.tensor}"
        p = self._place(window, scope)
        pointer = _plus(self._base(window.tensor), p.at)
        return f"{{.at = {pointer}, .row = {p.row}, .col = {p.col}}}" if slot.kind == "tile" else pointer

    def _output(self, slot: Slot, call: TileCall, scope: Scope) -> str:
        window = call.outputs.get(slot.name)
        if window is None:
            return ABSENT["sink"] if slot.sink else ABSENT["out"] if slot.kind == "tile" else "0"
        p, add, base = self._place(window, scope), self._add(call, slot.name, scope), self._base(window.tensor)
        if not slot.sink:
            pointer = _plus(base, p.at)
            return f"{{.at = {pointer}, .row = {p.row}, .col = {p.col}, .add = {add}}}" if slot.kind == "tile" else pointer
        pointer = base if slot.kind == "matrix" else _plus(base, p.at)
        own = int(slot.kind == "matrix" and window.tensor in self.nest.stored)
        return f"{{.grad = {pointer}, .param = 0, .velocity = 0, .add = {add}, .window = {own}}}"

    def _update(self, window: Window, scope: Scope, whole: bool) -> str:
        """whole: the sink of a matrix, which the kernel finds its place in."""
        at = Poly() if whole else self._place(window, scope).at
        sink = f"region->d_{window.tensor}"
        velocity = _plus(f"{sink}.velocity", at) if self.slots.momentum else "0"
        return f"{{.grad = 0, .param = {_plus(f'{sink}.param', at)}, .velocity = {velocity}, .add = 0, .window = 0}}"

    @staticmethod
    def _add(call: TileCall, slot: str, scope: Scope) -> str:
        if slot not in call.adds:
            return "0"
        later = [first.replace("==", "!=") for v in call.adds[slot] if (first := scope.first(v))]
        return " || ".join(later) or str(int(not call.adds[slot]))


def _plus(pointer: str, at: Poly) -> str:
    return pointer if at.number == 0 else f"{pointer} + {at}"
