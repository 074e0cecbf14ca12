"""What a region has to compute, as statements: single calls of leaves whose indices are known to each other.

The definition of a region is a list of calls on whole tensors. Here it is cut to what is wanted and brought into the
form that loops are made of: one call for each gradient, sums of several contributions as one tensor that all of them add
to, cheap calls on the region's inputs (a LayerNorm, an elementwise function: no sums of products) once for each reader,
so that each reader may walk the tokens in a loop of its own, and one label for indices that run along the same axis of
the same tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from compilation.ops import REGISTRY
from compilation.ops.base import Op, Site
from compilation.ops.indices import Axis
from compilation.program import Call, Program, Role
from compilation.regions.calls import normal_calls, with_copies
from compilation.regions.labels import FEW, Along, Label, Union, factors, label_all, made_in, mixes
from compilation.regions.loops import PANEL
from compilation.regions.sums import Chain, chains, is_shared, merged
from compilation.types import Type

SMALL = 8       # how many times as large the region's largest token matrix is as what may stand beside it whole


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
        return tuple(self._along_axis(axis) for axis in self.op.axes(slot))

    def _along_axis(self, axis: Axis) -> Along:
        size = axis.size(self.sizes)
        if axis.index not in self.labels:
            return Along(None, 1, size)
        label, factor = self.labels[axis.index]
        inner = axis.factor * (self.sizes[axis.inner] if axis.inner else 1)
        return Along(None if label.whole else label, inner * factor, size)

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
        """What it goes through besides products (`Op.elements`)."""
        return self.op.elements(self.site)

    @cached_property
    def results(self) -> list[tuple[int, set[Label | None]]]:
        """Elements of each result, and the labels of its axes."""
        return [(prod(a.size for a in self.trained(slot)), {a.label for a in self.along(slot)}) for slot in self.makes]

    @cached_property
    def grain(self) -> tuple[Along, ...]:
        """The axes along the lanes and the rows of its tiles, if it makes products."""
        return tuple(self._along_axis(axis) for axis in self.op.grain(self.site.wants) or ())


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


def statements(definition: Program, results: tuple[str, ...], parts: Mapping[str, tuple[str, int]],
               updates: Iterable[str] = (), split: bool = False) -> Statements:
    """The statements for the wanted results. parts: of matrix slots, how much is trained (as `Site.parts`).

    updates: the results that are gradients of a parameter and applied to it at once.
    """
    types = {n: t.type for n, t in definition.tensors.items()}
    calls = with_copies(normal_calls(definition, results, split), set(results) - set(updates), types)
    found = chains(calls, results, types)
    may = [c for c in found if is_shared(c, calls, results) and not _is_small(types[c.root], definition)]
    shared = [c for c in may if not c.rest]
    standing = [c for c in found if c.root in results]
    if left := [c for c in found if c not in shared and c not in standing]:
        trial = dict(types)
        sums, others = merged(calls, standing, shared, trial)
        left = _standing(_connected(definition, results, sums, others, trial, parts), left)
        shared += [c for c in left if c in may]
        standing += [c for c in left if c not in may]
    sums, calls = merged(calls, standing, shared, types)
    work = _connected(definition, results, sums, calls, types, parts)
    for s in work.all:
        name = next(iter(s.makes.values()))
        if name in set(updates):
            s.update = name.removeprefix("d_")
    work.labels = label_all(work, _keep_whole(work))
    work.makers = {t: s for s in work.all for t in s.makes.values() if t not in work.sums}
    return work


def _connected(definition: Program, results: tuple[str, ...], sums: set[str], calls: Iterable[Call],
               types: dict[str, Type], parts: Mapping[str, tuple[str, int]]) -> Statements:
    """The calls as statements that know what makes what they read."""
    plain = [_statement(c, types, parts) for c in calls]
    made: dict[str, list[Statement]] = {}
    for s in plain:
        for t in dict.fromkeys(s.makes.values()):
            made.setdefault(t, []).append(s)
    terms = {t: sorted(ss, key=lambda s: s.adds) for t, ss in made.items() if t in sums}    # what cannot add comes first
    work = Statements(definition, results, types, terms, {}, [], [])
    _clone(plain, made, work)
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


def _is_small(tensor: Type, definition: Program) -> bool:
    """Whether a tensor may stand whole beside the region's token matrices."""
    largest = max((t.bytes for t in definition.tensors.values() if t.role == Role.INPUT), default=0)
    return tensor.bytes * SMALL <= largest


def _standing(work: Statements, found: Iterable[Chain]) -> list[Chain]:
    """Of chains of additions in statements without these sums, those that are to be tensors that stand whole.

    They are where terms come along unlike indices, and where several terms are summed over loops that may be outside of the
    tensor's own: each of them would stand whole there. Of the others a tile is made where it is read.
    """
    found = list(found)
    adders = {id(s.call): s for s in work.all}
    union = _keep_whole(work, {id(add) for chain in found for add in chain.adds})
    makers = {t: s for s in work.all for t in s.makes.values()}
    standing = []
    for chain in found:
        united = union.copy()
        for add in chain.adds:
            for slot in adders[id(add)].sources:
                united.read(adders[id(add)], slot)
        cut = _cut(work, united)
        summed = [t for t in chain.terms if t in makers and cut & {
            united.find((id(makers[t]), index))[0] for index in makers[t].op.summed(made_in(makers[t], t))}]
        if len(summed) > 1 or _mixed(work, union, united):
            standing.append(chain)
        else:
            union = united
    return standing


def _cut(work: Statements, union: Union) -> set[object]:
    """The indices that the region's own tensors have, and which are no columns of its slots."""
    own, outer = set(), set()
    for s in work.all:
        for slot, t in (*s.reads.items(), *s.makes.items()):
            inside = slot in s.sources or (slot in s.op.slots and t not in work.results and t not in s.reads.values())
            nodes = [union.find(node[0])[0] for node in factors(s, slot) if node and s.sizes[node[0][1]] > FEW]
            if inside:
                own.update(nodes)
            elif s.op.slots[slot].kind == "tile":
                outer.update(nodes[1:])
    return own - outer


def _keep_whole(work: Statements, apart: Collection[int] = ()) -> Union:
    """Unites the indices along the axes of what is made and read; returns them. apart: ids of calls that are left alone.

    What several statements read makes their indices one. Where two indices of one operation would be one so, as those of
    queries and keys that are made of one tensor of low rank, it stands whole instead, like a sum.
    """
    readers: dict[tuple[int, str], list[tuple[Statement, str]]] = {}
    for s in work.all:
        for slot, source in s.sources.items() if id(s.call) not in apart else ():
            readers.setdefault((id(source), s.reads[slot]), []).append((s, slot))
    union = Union()
    for found in readers.values():
        if len(found) == 1:
            union.read(*found[0])
    several = [found for found in readers.values() if len(found) > 1]
    for found in sorted(several, key=lambda found: -work.types[found[0][0].reads[found[0][1]]].bytes):
        united = union.copy()
        for s, slot in found:
            united.read(s, slot)
        if _mixed(work, union, united):
            _stand(work, found, united := union)
        union = united
    return union


def _mixed(work: Statements, before: Union, after: Union) -> bool:
    """Whether several indices of a statement became one."""
    return any(mixes(s, after) and not mixes(s, before) for s in work.all)


def _stand(work: Statements, readers: list[tuple[Statement, str]], union: Union) -> None:
    """Make a tensor one that stands whole, in rows; a copy, where a panel is made, or others together with it."""
    s, slot = readers[0]
    source, tensor = s.sources[slot], s.reads[slot]
    out = made_in(source, tensor)
    for s, slot in readers:
        del s.sources[slot]
    term = source
    if len(source.makes) > 1 or source.op.layout.get(out) == PANEL:
        inner = f"{tensor}.inner"
        work.types[inner] = work.types[tensor]
        source.makes[out] = inner
        term = _statement(Call("copy", {"x": inner}, {"y": tensor}, where=source.call.where), work.types, {})
        term.sources["x"] = source
        work.all.insert(work.all.index(source) + 1, term)
        union.read(term, "x")
    work.sums[tensor] = [term]
