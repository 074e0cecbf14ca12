"""Where the tensors of a nest are: how much of each exists at once, when it lives, what may share storage, and offsets.

A tensor that is made and read within one iteration of a loop exists tile by tile along that loop; what is made in one
loop and read after it exists whole. It lives from the loop that first touches it to the end of the one that last does. A
tensor takes the place of another where each element of that is read for the last time before the element in its place is
written; so one that is as large as a result and is read tile by tile before the result is written stands in the result
and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from compilation.memory.liveness import ALIGNMENT, padded
from compilation.memory.placement import Item, bound_of, place
from compilation.ops.base import Site
from compilation.regions.estimate import own_steps, work
from compilation.regions.labels import Along
from compilation.regions.loops import ROWS, Axis, Loop, Nest, Stored, TileCall, Window
from compilation.regions.nest import EARLY, LAST, Block, Builder, Instance, NoNestError, Path, Placed
from compilation.regions.strips import Ahead, find_strips
from compilation.target import Target
from compilation.types import BYTES, SUM, Type


@dataclass(eq=False)
class Storage:
    """What holds an instance. home: the loops in each iteration of which it is another. size: bytes."""

    instance: Instance
    home: Path
    shape: tuple[int, ...]
    origins: tuple[Block | None, ...]
    size: int
    first: int = 0
    last: int = 0
    over: Storage | None = None         # whose place it takes
    ahead: Ahead | None = None          # in which columns of a result it stands

    @property
    def root(self) -> Storage:
        return self if self.over is None else self.over.root


@dataclass(eq=False)
class Touch:
    """One access. write: it makes (a part of) the tensor."""

    placed: Placed
    slot: str
    write: bool


@dataclass
class Layout:
    """The memory of one nest."""

    builder: Builder
    order: list[Placed] = field(default_factory=list)
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)     # of blocks and statements: first and last position
    storages: dict[int, Storage] = field(default_factory=dict)          # id of the instance -> its storage
    _work: dict[Target, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._number(self.builder.root)
        self.at = {id(p): i for i, p in enumerate(self.order)}
        self._state()
        self._check_updates()
        found = {id(i): i for p in self.order for i in (*p.reads.values(), *p.writes.values())}
        self.instances = list(found.values())
        for instance in self.instances:
            self.storages[id(instance)] = self._storage(instance)
        self._share()
        for block in self.builder.root.items:
            if isinstance(block, Block) and block.part == EARLY:
                self._wait(block)
        self._take_places()

    def _number(self, block: Block) -> None:
        first = len(self.order)
        for item in block.items:
            if isinstance(item, Placed):
                self.spans[id(item)] = (len(self.order),) * 2
                self.order.append(item)
            else:
                self._number(item)
        self.spans[id(block)] = (first, len(self.order) - 1)

    def _state(self) -> None:
        """What a tiled carried index needs: the state between its tiles."""
        for p in self.order:
            for index, slots in p.statement.op.carried.items():
                label = p.statement.labels.get(index, (None, 1))[0]
                if label is None or not any(b.label is label for b in p.path):
                    continue
                for slot in slots:
                    if slot not in p.writes:
                        name = f"{next(iter(p.statement.makes.values()))}.{slot}"
                        instance = Instance(name, p.statement.along(slot), ROWS, (), writes=[(p, slot)])
                        p.writes[slot] = instance

    def _check_updates(self) -> None:
        """No weight is read after its update, in this iteration or a later one."""
        for p in self.order:
            s = p.statement
            if not p.updates:
                continue
            axes = {a.label for slot in (s.makes or s.reads) for a in s.along(slot)}
            for other in self.order:
                for slot, instance in other.reads.items():
                    if not instance.slot or instance.tensor != s.update or other is p or not other.statement.takes(slot):
                        continue
                    mine = {a.label for a in other.statement.along(slot)}
                    for a, b in zip(p.path, other.path, strict=False):
                        if a is not b:
                            break
                        if a.label not in axes or a.label not in mine:
                            raise NoNestError(f"{s.update} is read again after it is updated")
                    if self.at[id(other)] > self.at[id(p)]:
                        raise NoNestError(f"{s.update} is read after it is updated")

    # -- how much and how long -----------------------------------------------------------------------
    @staticmethod
    def touches(instance: Instance) -> list[Touch]:
        return [Touch(p, s, True) for p, s in instance.writes] + [Touch(p, s, False) for p, s in instance.reads]

    def _storage(self, instance: Instance) -> Storage:
        if instance.slot:
            shape = tuple(a.size for a in instance.along)
            return Storage(instance, (), shape, (None,) * len(shape), 0)
        touches = self.touches(instance)
        home = touches[0].placed.path
        for t in touches[1:]:
            n = 0
            while n < min(len(home), len(t.placed.path)) and home[n] is t.placed.path[n]:
                n += 1
            home = home[:n]
        axes = {a.label for a in instance.along}
        for p, _ in instance.writes:
            for n, block in enumerate(home):
                if block.label not in axes and block not in instance.shares and self.builder.sums_over(p.statement, block):
                    home = home[:n]
                    break
        sizes: list[int] = []
        origins: list[Block | None] = []
        for a in instance.along:
            inside = [b for b in home if a.label is not None and b.label is a.label]
            origins.append(inside[-1] if inside else None)
            sizes.append(min(a.size, inside[-1].step * a.factor) if inside else a.size)
        storage = Storage(instance, home, tuple(sizes), tuple(origins), padded(SUM.of(prod(sizes))))
        spans = [self.span(t.placed, home) for t in touches]
        storage.first, storage.last = min(s[0] for s in spans), max(s[1] for s in spans)
        return storage

    def span(self, placed: Placed, home: Path) -> tuple[int, int]:
        """The positions of what stands directly in `home` and holds a statement."""
        path = placed.path
        return self.spans[id(path[len(home)])] if len(path) > len(home) else self.spans[id(placed)]

    # -- sharing ---------------------------------------------------------------------------------------
    def _share(self) -> None:
        for result in self._results():
            same = [s for s in self.storages.values() if not s.instance.slot and not s.home and s.instance.layout == ROWS
                    and s.shape == result.shape and s.over is None]
            for s in sorted(same, key=lambda s: s.first):
                if self._precedes([s.instance, *self._group(result)[1:]], [result.instance], ()) \
                        and not self._clash(s, result):
                    s.over = result

    def _wait(self, block: Block) -> None:
        """What is kept in an iteration stands where the next one writes a result. Raises NoNestError where nothing does."""
        strips = [x for result in self._results() for x in find_strips(self, result, self._group(result), block)]
        if not strips:
            raise NoNestError("nothing waits in a result")
        for s, ahead in strips:
            s.ahead = ahead

    def _results(self) -> list[Storage]:
        results = self.builder.work.results
        return [self.storages[id(i)] for i in self.instances if i.slot and i.tensor in results and i.writes]

    def _group(self, result: Storage) -> list[Instance]:
        """A result and what takes its place before it."""
        return [result.instance, *(s.instance for s in self.storages.values() if s.over is result)]

    def _take_places(self) -> None:
        """Results of calls that may stand where what they are made of stood."""
        for p in self.order:
            for out, into in p.statement.op.may_alias(p.statement.site).items():
                if out not in p.writes or into not in p.reads:
                    continue
                made, source = self.storages[id(p.writes[out])], self.storages[id(p.reads[into])]
                if made.instance.slot or source.instance.slot or made.over or made.home != source.home:
                    continue
                if (made.shape, made.instance.layout) != (source.shape, source.instance.layout):
                    continue
                if source.root.instance.slot or source.root.ahead or made.ahead:
                    continue
                if any(x.over is made for x in self.storages.values()):
                    continue
                group = [x.instance for x in self.storages.values() if x.root is source.root]
                if self._precedes(group, [made.instance], made.home):
                    made.over = source
                    source.root.last = max(source.root.last, made.last)

    def _clash(self, s: Storage, result: Storage) -> bool:
        """Whether something else stands in the result while s lives."""
        return any(o.first <= s.last and s.first <= o.last for o in self.storages.values() if o.over is result)

    def _precedes(self, before: Iterable[Instance], after: Iterable[Instance], home: Path) -> bool:
        """Whether each element of `before` is touched for the last time before the one in its place in `after` is."""
        return all(self._earlier(a, b, len(home)) for x in before for a in self.touches(x)
                   for y in after for b in self.touches(y))

    def _earlier(self, a: Touch, b: Touch, depth: int) -> bool:
        if a.placed is b.placed:
            s = a.placed.statement
            over = s.op.may_alias(s.site).get(b.slot) == a.slot or s.op.pointwise(a.slot, b.slot)
            if not over or a.write or not b.write:
                return False
        elif self.at[id(a.placed)] >= self.at[id(b.placed)]:
            return False
        for p, q in list(zip(a.placed.path, b.placed.path, strict=False))[depth:]:
            if p is not q:
                break
            mine, its = ([n for n, axis in enumerate(t.placed.statement.along(t.slot)) if axis.label is p.label]
                         for t in (a, b))
            if mine != its or not mine:
                return False
        return True

    def over(self) -> frozenset[tuple[str, str]]:
        """The results that may take the place of one of the region's inputs, if that dies: (result, slot)."""
        slots = [i for i in self.instances if i.slot]
        results = [i for i in slots if i.tensor in self.builder.work.results and i.writes]
        found = set()
        for made in results:
            if any(s.ahead and s.ahead.result is self.storages[id(made)] for s in self.storages.values()):
                continue
            inside = [s.instance for s in self.storages.values() if s.over is self.storages[id(made)]]
            for given in slots:
                if given not in results and not given.writes and tuple(a.size for a in given.along) == tuple(
                        a.size for a in made.along) and len(made.along) == 2 \
                        and self._precedes([given], [made, *inside], ()):
                    found.add((made.tensor, given.tensor))
        return frozenset(found)

    # -- scratch -----------------------------------------------------------------------------------------
    def site(self, p: Placed) -> Site:
        """The largest window that a statement is called on."""
        s = p.statement
        sizes = s.sizes
        extents = {}
        for index, (label, factor) in s.labels.items():
            inside = [b for b in p.path if b.label is label]
            extents[index] = min(sizes[index], inside[-1].step * factor) if inside else sizes[index]
        return s.op.window(s.site, extents)

    def kernel_scratch(self, p: Placed) -> int:
        return padded(p.statement.op.scratch(self.site(p)))

    @cached_property
    def items(self) -> list[Item]:
        """What has to be placed in the region's scratch."""
        found = [Item(str(n), s.first, s.last + 1, s.size) for n, s in enumerate(self.storages.values())
                 if s.over is None and s.ahead is None and not s.instance.slot]
        return found + [Item(f"work {n}", n, n + 1, size) for n, p in enumerate(self.order)
                        if (size := self.kernel_scratch(p))]

    @property
    def bound(self) -> int:
        """Bytes that live at once at the worst place: no placement is smaller."""
        return bound_of(self.items)

    def work(self, target: Target) -> tuple[int, int]:
        """(multiply-accumulates, estimated time in those of full tiles)."""
        if target not in self._work:
            macs, time = work(self.order, own_steps(self.builder.root), 1, target)
            self._work[target] = int(macs[0]), int(time[0])
        return self._work[target]

    # -- plain data ----------------------------------------------------------------------------------------
    def nest(self) -> Nest:
        """The nest with every tensor in its place."""
        placement = place([Item(i.id, i.lower, i.upper, i.size // ALIGNMENT) for i in self.items])
        offsets = {n: at * ALIGNMENT for n, at in placement.offsets.items()}
        names = _names(self.storages.values())
        _name_loops(self.builder.root)
        stored = {}
        for s in self.storages.values():
            if s.instance.slot:
                continue
            name, root, strip = names[id(s.instance)], s.root, None
            if s.ahead:
                root, block, factor = s.ahead.result, s.ahead.loop, s.ahead.factor
                strip = Axis(s.shape[-1], block.name, factor=factor, ahead=block.step)
            inside = root.instance.tensor if root.instance.slot else ""
            at = None if inside else offsets[str(list(self.storages.values()).index(root))]
            stored[name] = Stored(name, Type(s.shape), s.instance.layout, at, inside, strip)
        for n, p in enumerate(self.order):
            if size := self.kernel_scratch(p):
                stored[f"work.{n}"] = Stored(f"work.{n}", Type((size,), BYTES), ROWS, offsets[f"work {n}"])
        body = tuple(self._lower(item, names) for item in self.builder.root.items)
        return Nest(stored, body, placement.height * ALIGNMENT)

    def _lower(self, item: Block | Placed, names: dict[int, str]) -> Loop | TileCall:
        if isinstance(item, Block):
            assert item.label is not None
            outer = [b for b in item.path[:-1] if b.label is item.label]
            extent = min(item.label.size, outer[-1].step) if outer else item.label.size
            length = item.length(extent, item.step)
            part = {"": None, EARLY: (0, length), LAST: (extent - length, extent)}[item.part]
            return Loop(item.name, extent, min(item.step, extent), tuple(self._lower(i, names) for i in item.items),
                        outer[-1].name if outer else "", part)
        s = item.statement
        inputs = {slot: self._window(item, slot, i, names) for slot, i in item.reads.items()}
        outputs = {slot: self._window(item, slot, i, names) for slot, i in item.writes.items()}
        updates = {}
        if item.updates:
            rank = len(self.builder.work.types[s.update].shape)
            axes = self._axes(item, s.along(next(iter(s.makes or s.reads)))[-rank:], (None, None))
            updates = {next((o.removeprefix("d_") for o in s.makes), s.op.own_update or ""): Window(s.update, axes)}
        at = self.at[id(item)]
        return TileCall(s.op.name, inputs, outputs, s.call.attrs, updates, self._adds(item), self._carried(item),
                        f"work.{at}" if self.kernel_scratch(item) else "", s.call.where)

    def _window(self, p: Placed, slot: str, instance: Instance, names: dict[int, str]) -> Window:
        storage = self.storages[id(instance)]
        along = p.statement.along(slot)[-len(storage.shape):]
        return Window(names[id(instance)], self._axes(p, along, storage.origins))

    @staticmethod
    def _axes(p: Placed, along: Sequence[Along], origins: Sequence[Block | None]) -> tuple[Axis, ...]:
        axes = []
        for n, a in enumerate(along):
            inside = [b for b in p.path if a.label is not None and b.label is a.label]
            origin, start = origins[n], inside[-1] if inside else None
            loop = start or origin
            size = min(a.size, loop.step * a.factor) if loop else a.size
            axes.append(Axis(size, start.name if start else "", origin.name if origin else "", a.factor))
        return tuple(axes)

    def _adds(self, p: Placed) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for slot, instance in p.writes.items():
            if slot not in p.statement.op.adds:
                continue
            axes = {a.label for a in p.statement.along(slot)}       # a sum, made whole, has none
            home = self.storages[id(instance)].home
            if instance.tensor in self.builder.sums and instance.writes[0][0] is not p:
                found[slot] = ()
            elif over := [b.name for b in p.path[len(home):] if b.label not in axes
                          and self.builder.sums_over(p.statement, b)]:
                found[slot] = tuple(over)
        return found

    @staticmethod
    def _carried(p: Placed) -> dict[str, str]:
        found = {}
        for index in p.statement.op.carried:
            label = p.statement.labels.get(index, (None, 1))[0]
            inside = [b for b in p.path if label is not None and b.label is label]
            if inside:
                found[index] = inside[-1].name
        return found




def _names(storages: Iterable[Storage]) -> dict[int, str]:
    names: dict[int, str] = {}
    taken: set[str] = set()
    for s in sorted(storages, key=lambda s: not s.instance.slot):      # the slots keep theirs
        name, n = s.instance.tensor, 1
        while name in taken:
            n += 1
            name = f"{s.instance.tensor}.{n}"
        taken.add(name)
        names[id(s.instance)] = name
    return names


def _name_loops(root: Block) -> None:
    taken: set[str] = set()

    def walk(block: Block) -> None:
        for item in block.items:
            if isinstance(item, Block):
                assert item.label is not None
                name, n = item.label.name, 0
                while name in taken:
                    n += 1
                    name = f"{item.label.name}{n}"
                taken.add(name)
                item.name = name
                walk(item)

    walk(root)
