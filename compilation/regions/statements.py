"""What a region has to compute, as statements: single calls of leaves whose indices are known to each other.

The definition of a region is a list of calls on whole tensors. Here it is cut to what is wanted and brought into the
form that loops are made of: one call for each gradient, sums of several contributions as one tensor that all of them add
to, cheap calls on the region's inputs (a LayerNorm, an elementwise function: no sums of products) once for each reader,
so that each reader may walk the tokens in a loop of its own, and one label for indices that run along the same axis of
the same tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from compilation.ops import REGISTRY
from compilation.ops.base import Op, Site
from compilation.program import Call, Program, Role
from compilation.regions.loops import PANEL
from compilation.regions.sums import merge_sums
from compilation.types import Type


@dataclass(eq=False)
class Label:
    """An index of the region. size: elements; whole: it is not tiled; limit: most elements of a tile.

    carried: some operation carries a state from tile to tile of it. What such operations make together with it is made in
    blocks of it, larger than the tiles that others take.
    """

    name: str
    size: int
    whole: bool = False
    limit: int = 0
    carried: bool = False


@dataclass(frozen=True)
class Along:
    """One axis of a tensor, by the label that runs along it: `factor` elements for each element of the label."""

    label: Label | None         # None: never tiled
    factor: int
    size: int


@dataclass(eq=False)
class Statement:
    """One call. reads and makes: slot -> tensor of the definition (or slot of the region).

    sources: slot -> the statement that makes what is read there; absent for the region's own slots and for sums, which many
    statements make. site: the call on whole tensors. labels: index of the operation -> (label, its elements for each element
    of the label). update: the region's parameter slot that the gradient in the only output is applied to.
    """

    op: Op
    call: Call
    reads: dict[str, str]
    makes: dict[str, str]
    site: Site
    sources: dict[str, Statement] = field(default_factory=dict)
    labels: dict[str, tuple[Label, int]] = field(default_factory=dict)
    update: str = ""
    _along: dict[str, tuple[Along, ...]] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Index -> elements."""
        return self.op.bind(self.site)

    def along(self, slot: str) -> tuple[Along, ...]:
        """The axes of a slot by label."""
        if slot not in self._along:
            self._along[slot] = self._axes(slot)
        return self._along[slot]

    def _axes(self, slot: str) -> tuple[Along, ...]:
        sizes = self.sizes
        found = []
        for axis in self.op.axes(slot):
            inner = axis.factor * (sizes[axis.inner] if axis.inner else 1)
            size = axis.size(sizes)
            if axis.index in self.labels:
                label, factor = self.labels[axis.index]
                found.append(Along(None if label.whole else label, inner * factor, size))
            else:
                found.append(Along(None, 1, size))
        return tuple(found)

    def trained(self, slot: str) -> tuple[Along, ...]:
        """The axes of what there is of a slot: of a weight's gradient the trained part."""
        found, weight = list(self.along(slot)), slot.removeprefix("d_")
        if weight != slot and weight in self.site.parts:
            axis, trained = self.site.parts[weight]
            at = int(axis == "cols")
            found[at] = Along(found[at].label, found[at].factor, trained)
        return tuple(found)

    def takes(self, slot: str) -> bool:
        """Whether the values in a slot are read, not only the shape: a weight's gradient needs no weight."""
        if self.op.slots[slot].kind == "matrix" and all(self.op.slots[o].sink for o in self.makes):
            return False
        return slot not in self.op.needed_for or bool(set(self.op.needed_for[slot]) & set(self.makes))

    def free(self, label: Label) -> bool:
        """Whether tiles of the label are tiles of every output."""
        return all(any(a.label is label for a in self.along(s)) for s in self.makes)

    def touches(self) -> list[Label]:
        """The labels of its indices that may be tiled."""
        return list(dict.fromkeys(label for label, _ in self.labels.values() if not label.whole))

    @property
    def adds(self) -> bool:
        """Whether all that it makes can be added to what stands there."""
        return all(o in self.op.adds for o in self.makes)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates on whole tensors."""
        return self.op.macs(self.site)

    @cached_property
    def elements(self) -> int:
        """Elements of its results."""
        return self.op.elements(self.site)


@dataclass
class Statements:
    """All that a region has to do. types: tensors of the definition. sums: tensors that several statements add to.

    roots: the statements that make a result or an update, or add to a sum, in an order that computes.
    """

    definition: Program
    results: tuple[str, ...]
    types: dict[str, Type]
    sums: dict[str, list[Statement]]
    makers: dict[str, Statement]
    all: list[Statement]
    labels: list[Label]

    def gradient(self, s: Statement, slot: str) -> bool:
        """Whether a slot makes a parameter's gradient, or adds to it."""
        return s.op.slots[slot].sink or s.makes[slot] in self.gradients

    @cached_property
    def gradients(self) -> frozenset[str]:
        """The results that are gradients of parameters."""
        fixed = {n for n, t in self.definition.tensors.items() if t.role is Role.CONSTANT}
        return frozenset(r for r in self.results if r.startswith("d_") and r.removeprefix("d_") in fixed)


def is_cheap(op: Op, site: Site) -> bool:
    """No sums of products, and no sums over an index: made again sooner than kept."""
    return op.leaf and op.macs(site) == 0 and not any(op.summed(s) for s in (o.name for o in op.outputs if not o.optional))


def normal_calls(definition: Program, results: Iterable[str], split: bool) -> list[Call]:
    """The calls that the wanted results need: one for each gradient, with what they lack put before them.

    split: operations whose outputs are made together are split, too, by the axes of their outputs.
    """
    wanted = set(results)
    calls = [c for call in needed(definition.calls, wanted) for c in with_before(call)]
    calls = needed([c for call in calls for c in apart(call, split)], wanted)
    return in_order(needed(remade(calls), wanted))


def in_order(calls: list[Call]) -> list[Call]:
    """The calls, each behind those that it reads from, otherwise as they were."""
    made = {t: c for c in calls for t in c.outputs.values()}
    out: list[Call] = []
    done: set[int] = set()

    def put(call: Call) -> None:
        if id(call) not in done:
            done.add(id(call))
            for t in call.inputs.values():
                if t in made:
                    put(made[t])
            out.append(call)

    for call in calls:
        put(call)
    return out


def needed(calls: Iterable[Call], wanted: set[str]) -> list[Call]:
    """The calls, outputs and inputs that lead to what is wanted."""
    calls = list(calls)
    made = {t: i for i, c in enumerate(calls) for t in c.outputs.values()}
    kept: dict[int, set[str]] = {}
    left = list(wanted)
    while left:
        tensor = left.pop()
        if tensor not in made or tensor in kept.setdefault(made[tensor], set()):
            continue
        kept[made[tensor]].add(tensor)
        call = calls[made[tensor]]
        left += _read_for(call, {s for s, t in call.outputs.items() if t in kept[made[tensor]]}).values()
    out = []
    for i in sorted(kept):
        outputs = {s: t for s, t in calls[i].outputs.items() if t in kept[i]}
        out.append(replace(calls[i], outputs=outputs, inputs=_read_for(calls[i], set(outputs))))
    return out


def _read_for(call: Call, outputs: set[str]) -> dict[str, str]:
    """The inputs that are read for some of the outputs."""
    rules = REGISTRY[call.op].needed_for
    return {s: t for s, t in call.inputs.items() if s not in rules or set(rules[s]) & outputs}


def with_before(call: Call) -> list[Call]:
    """The call behind the one that makes the inputs it lacks."""
    op = REGISTRY[call.op]
    if op.before is None or any(s.name in call.inputs for s in REGISTRY[op.before].outputs):
        return [call]
    first = REGISTRY[op.before]
    stem = next(iter(call.outputs.values()))
    made = {s.name: f"{stem}.{s.name}" for s in first.outputs}
    inputs = {s.name: call.inputs[s.name] for s in first.inputs if s.name in call.inputs}
    attrs = {k: v for k, v in call.attrs.items() if k in first.attrs}
    return [Call(first.name, inputs, made, attrs, where=call.where), replace(call, inputs={**call.inputs, **made})]


def remade(calls: list[Call]) -> list[Call]:
    """Where a gradient call can give the forward result of its own operation, too, the forward call is left out."""
    out = list(calls)
    for call in calls:
        op = REGISTRY[call.op]
        if any(set(op.free(g)) != set(op.free(s)) for g in op.remakes for s in call.outputs) \
                and any(c is not call and c.op == call.op and c.inputs == call.inputs for c in calls):
            continue                        # it was split, and another part has the same axes
        forward = next((f for f in out if REGISTRY[f.op].gradient == op.name and all(
            call.inputs.get(s) == t for s, t in f.inputs.items())), None) if op.remakes else None
        if forward is not None and not ancestors(out, call) & set(forward.outputs.values()):
            more = {g: forward.outputs[s] for g, s in op.remakes.items() if s in forward.outputs}
            out = [replace(call, outputs={**call.outputs, **more}) if c is call else c for c in out if c is not forward]
    return out


def ancestors(calls: list[Call], call: Call) -> set[str]:
    """The tensors that a call is computed from."""
    made = {t: c for c in calls for t in c.outputs.values()}
    found: set[str] = set()
    left = list(call.inputs.values())
    while left:
        t = left.pop()
        if t not in found:
            found.add(t)
            left += made[t].inputs.values() if t in made else []
    return found


def apart(call: Call, split: bool) -> list[Call]:
    """One call for each output; of operations that make theirs together, one for all, or one for outputs of the same
    axes."""
    op = REGISTRY[call.op]
    groups: dict[object, dict[str, str]] = {}
    sinks_first = sorted(call.outputs.items(), key=lambda o: not op.slots[o[0]].sink)    # what comes last may take its place
    for slot, tensor in sinks_first:
        together = op.joint or op.carried
        key: object = slot if not together else frozenset(op.free(slot)) if split else 0
        groups.setdefault(key, {})[slot] = tensor
    return [replace(call, outputs=g) for g in groups.values()] if len(groups) > 1 else [call]


def statements(definition: Program, results: tuple[str, ...], parts: Mapping[str, tuple[str, int]],
               updates: Iterable[str] = (), split: bool = False) -> Statements:
    """The statements for the wanted results. parts: of matrix slots, how much is trained (as `Site.parts`).

    updates: the results that are gradients of a parameter and applied to it at once.
    """
    types = {n: t.type for n, t in definition.tensors.items()}
    calls = _with_copies(normal_calls(definition, results, split), set(results) - set(updates))
    sums, calls = merge_sums(calls, set(results), types)
    plain = [_statement(c, types, parts) for c in calls]
    made: dict[str, list[Statement]] = {}
    for s in plain:
        for t in s.makes.values():
            made.setdefault(t, []).append(s)
    terms = {t: sorted(ss, key=lambda s: s.adds) for t, ss in made.items() if t in sums}    # what cannot add comes first
    work = Statements(definition, results, types, terms, {}, [], [])
    _clone(plain, made, work)
    for s in work.all:
        name = next(iter(s.makes.values()))
        if name in set(updates):
            s.update = name.removeprefix("d_")
    work.labels = _label(work)
    work.makers = {t: s for s in work.all for t in s.makes.values() if t not in work.sums}
    return work


def _statement(call: Call, types: dict[str, Type], parts: Mapping[str, tuple[str, int]]) -> Statement:
    op = REGISTRY[call.op]
    shapes = {s: types[t].shape for s, t in call.inputs.items()}
    own = {s: parts[t] for s, t in call.inputs.items() if t in parts}
    site = Site(shapes, call.attrs, frozenset(call.outputs), own)
    for slot, tensor in call.outputs.items():
        if tensor not in types:
            types[tensor] = _made(op, site, slot)
    return Statement(op, call, dict(call.inputs), dict(call.outputs), site)


def _made(op: Op, site: Site, slot: str) -> Type:
    inferred = op.infer(site)
    return inferred[slot] if slot in inferred else Type(op.line.shape(slot, op.bind(site)))


def _with_copies(calls: list[Call], results: set[str]) -> list[Call]:
    """A result that is made as a panel, or is read inside the region, too, is a copy of a tensor of the region's own."""
    read = {t for c in calls for t in c.inputs.values()}
    names: dict[str, str] = {}
    copies = []
    for c in calls:
        op = REGISTRY[c.op]
        for slot, t in c.outputs.items():
            if t in results and not op.slots[slot].sink and (t in read or op.layout.get(slot) == PANEL):
                names[t] = f"{t}.inner"
                copies.append(Call("copy", {"x": names[t]}, {"y": t}, where=c.where))
    renamed = [replace(c, inputs={s: names.get(t, t) for s, t in c.inputs.items()},
                       outputs={s: names.get(t, t) for s, t in c.outputs.items()}) for c in calls]
    return renamed + copies


def _clone(plain: list[Statement], made: dict[str, list[Statement]], work: Statements) -> None:
    """Cheap statements on nothing but the region's slots are made once for each reader; others are shared."""
    outer = {t: s for t, ss in made.items() for s in ss if len(ss) == 1}

    def cloned(s: Statement) -> bool:
        results = set(s.makes.values()) & set(work.results)
        return is_cheap(s.op, s.site) and not results and all(
            t not in made or (t in outer and cloned(outer[t])) for t in s.reads.values())

    copies = {id(s) for s in plain if cloned(s)}

    def connect(s: Statement) -> None:
        for slot, t in s.reads.items():
            if t in work.sums or t not in outer:
                continue
            source = outer[t]
            if id(source) in copies:
                source = Statement(source.op, source.call, dict(source.reads), dict(source.makes), source.site)
                connect(source)
                work.all.append(source)
            s.sources[slot] = source

    for s in plain:
        if id(s) not in copies:
            connect(s)
            work.all.append(s)


class _Union:
    """Indices that run along the same axis: each is a multiple of a root."""

    def __init__(self) -> None:
        self.parent: dict[object, tuple[object, int]] = {}
        self.whole: set[object] = set()

    def find(self, node: object) -> tuple[object, int]:
        """(root, elements of the node for each element of the root)."""
        factor = 1
        while node in self.parent:
            node, f = self.parent[node]
            factor *= f
        return node, factor

    def same(self, a: object, fa: int, b: object, fb: int) -> None:
        """Two axes are one: fa elements for each of a, fb for each of b."""
        (ra, ga), (rb, gb) = self.find(a), self.find(b)
        ea, eb = fa * ga, fb * gb
        if ra == rb:
            if ea != eb:
                self.whole.add(ra)
        elif ea % eb == 0:
            self._under(rb, ra, ea // eb)
        elif eb % ea == 0:
            self._under(ra, rb, eb // ea)
        else:
            self.whole |= {ra, rb}

    def _under(self, child: object, parent: object, factor: int) -> None:
        self.parent[child] = (parent, factor)
        if child in self.whole:
            self.whole.add(parent)


def _label(work: Statements) -> list[Label]:
    union = _Union()
    sizes: dict[object, int] = {}
    limits: dict[object, int] = {}
    for s in work.all:
        for index, size in s.sizes.items():
            node = (id(s), index)
            sizes[node] = size
            if index in s.op.line.whole:
                union.whole.add(node)
            if index in s.op.limit:
                limits[node] = s.op.limit[index]
    for s in work.all:
        for slot, source in s.sources.items():
            out = next(o for o, t in source.makes.items() if t == s.reads[slot])
            for mine, its in zip(_factors(s, slot), _factors(source, out), strict=True):
                if mine and its:
                    union.same(*mine, *its)
                elif mine or its:
                    union.whole.add(union.find((mine or its)[0])[0])  # type: ignore[index]
    whole = {union.find(n)[0] for n in union.whole}
    labels: dict[object, Label] = {}
    taken: Counter[str] = Counter()
    loudest: dict[Label, int] = {}
    for s in work.all:
        for index in s.sizes:
            root, factor = union.find((id(s), index))
            if root not in labels:
                labels[root] = Label(root[1], sizes[root], root in whole or sizes[root] == 1)  # type: ignore[index]
            label = labels[root]
            s.labels[index] = (label, factor)
            speaks = len(s.op.line.axes) * (factor == 1)        # the widest operation on it gives the name
            if speaks > loudest.get(label, 0):
                loudest[label], label.name = speaks, index
            label.carried |= index in s.op.carried
            if (id(s), index) in limits:
                limit = max(1, limits[(id(s), index)] // factor)
                label.limit = min(label.limit or limit, limit)
    tiled = [x for x in labels.values() if not x.whole]
    for x in tiled:
        taken[x.name] += 1
        x.name += str(taken[x.name]) if taken[x.name] > 1 else ""
    return tiled


def _factors(s: Statement, slot: str) -> list[tuple[tuple[int, str], int] | None]:
    """Axis by axis: (node of its index, elements for each element of the index); None for a number."""
    sizes = s.sizes
    return [((id(s), a.index), a.factor * (sizes[a.inner] if a.inner else 1)) if a.index else None
            for a in s.op.axes(slot)]
