"""Labels: indices of a region's statements that run along the same axis of the same tensor are one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compilation.regions.statements import Statement, Statements

FEW = 16        # features that are not tiled, there are so few


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


class Union:
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

    def read(self, s: Statement, slot: str) -> None:
        """The axes of what is read in a slot are those of what is made."""
        source = s.sources[slot]
        for mine, its in zip(factors(s, slot), factors(source, made_in(source, s.reads[slot])), strict=True):
            if mine and its:
                self.same(*mine, *its)
            elif mine or its:
                self.whole.add(self.find((mine or its)[0])[0])  # type: ignore[index]

    def copy(self) -> Union:
        other = Union()
        other.parent, other.whole = dict(self.parent), set(self.whole)
        return other


def made_in(source: Statement, tensor: str) -> str:
    return next(o for o, t in source.makes.items() if t == tensor)


def mixes(s: Statement, union: Union) -> bool:
    """Whether several indices of a statement are one."""
    roots = [union.find((id(s), index))[0] for index in s.sizes]
    return len(set(roots)) < len(roots)


def label_all(work: Statements, union: Union) -> list[Label]:
    """Give every statement its labels; returns those that may be tiled."""
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


def factors(s: Statement, slot: str) -> list[tuple[tuple[int, str], int] | None]:
    """Axis by axis: (node of its index, elements for each element of the index); None for a number."""
    sizes = s.sizes
    return [((id(s), a.index), a.factor * (sizes[a.inner] if a.inner else 1)) if a.index else None
            for a in s.op.axes(slot)]
