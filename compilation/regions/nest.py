"""From statements and a schedule to a tree of loops with the statements in it.

Each statement that makes a result is a root: it stands in the loops of the schedule that run along its indices, in a
tree that it shares with the roots before it where that is right. What it reads is made where it is needed (Halide's
compute_at, Ragan-Kelley et al. 2013): in the innermost of the reader's loops that it has an index of, in loops of its
own below that; what is there already is read again, or made again, as the schedule has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod

from compilation.ops import REGISTRY
from compilation.ops.base import Site
from compilation.program import Call
from compilation.regions.labels import Along, Label
from compilation.regions.loops import PANEL, ROWS
from compilation.regions.schedule import Schedule
from compilation.regions.statements import Statement, Statements, is_cheap
from compilation.regions.sums import takes_shares
from compilation.target import TILES

EARLY, LAST = "early", "last"
USUAL = TILES[0]      # elements of a tile, where a choice must not depend on how large it is


class NoNestError(ValueError):
    """The schedule cannot be followed."""


@dataclass(eq=False)
class Block:
    """A loop under construction; the root has no label. tile: the loop walks a block of the same label.

    part: LAST, it has the last tile of its index alone; EARLY, all others. times: how many of the schedule's steps are one.
    """

    label: Label | None
    step: int
    tile: bool
    parent: Block | None
    items: list[Block | Placed] = field(default_factory=list)
    name: str = ""
    part: str = ""
    times: int = 1

    def length(self, extent: int, step: int) -> int:
        """How much it walks of an index, in steps."""
        last = (extent - 1) // step * step
        return last if self.part == EARLY else extent - last if self.part == LAST else extent

    @property
    def path(self) -> tuple[Block, ...]:
        """The loops from the outermost to this one."""
        return () if self.parent is None else (*self.parent.path, self)


Path = tuple[Block, ...]


@dataclass(eq=False)
class Instance:
    """A tensor as it exists in the nest: made at one place, read at others. slot: it is the region's own.

    along: its axes. path: the loops that it is made in (those that it is summed over excepted). shares: loops that it is a
    sum over of which each share is read by itself. kept: it was made before a loop to be read in it again and again.
    """

    tensor: str
    along: tuple[Along, ...]
    layout: str
    path: Path
    slot: bool = False
    writes: list[tuple[Placed, str]] = field(default_factory=list)
    reads: list[tuple[Placed, str]] = field(default_factory=list)
    shares: set[Block] = field(default_factory=set)
    kept: bool = False


@dataclass(eq=False)
class Placed:
    """A statement in its loops. reads and writes: slot -> where the tensor stands."""

    statement: Statement
    block: Block
    reads: dict[str, Instance] = field(default_factory=dict)
    writes: dict[str, Instance] = field(default_factory=dict)
    updates: bool = False       # its gradient is applied at once, and exists nowhere

    @property
    def path(self) -> Path:
        return self.block.path


class Builder:
    """One nest. After `build`: `root` is the tree, `instances` what exists in it."""

    def __init__(self, work: Statements, schedule: Schedule) -> None:
        self.work, self.schedule = work, schedule
        by_name = {x.name: x for x in work.labels}
        self.loops: list[tuple[Label, int, bool]] = []      # label, step, whether it walks a block
        for name, step in schedule.loops:
            if name not in by_name:
                raise NoNestError(f"the region has no label {name}")
            self.loops.append((by_name[name], min(step, by_name[name].size), by_name[name] in [x for x, _, _ in self.loops]))
        names = [n for n, _ in schedule.loops]
        self.blocked = {by_name[n] for n in names if names.count(n) > 1}
        self.root = Block(None, 0, False, None)
        self.instances: dict[tuple[object, ...], list[Instance]] = {}
        self.slots: dict[str, Instance] = {}
        self.sums: dict[str, Instance] = {}
        self._taken: dict[str, bool] = {}
        self._loops_of: dict[Statement, list[tuple[Label, int, bool]]] = {}
        self.ancestors: dict[str, set[str]] = {}

    # -- the order of things -------------------------------------------------------------------------
    def build(self) -> Builder:
        self._sums([t for t, terms in self.work.sums.items() if any(    # a term that is made together with something else
            not set(s.makes.values()) <= self.work.sums.keys() for s in terms)], ())
        late = {id(s) for s in self.work.all if s.update and s.op.slots[next(iter(s.makes))].kind != "vector"}
        summed = self._made([s for s in self._roots() if id(s) not in late])
        sums = sorted((t for t in self.work.results if t in self.work.sums), key=self._a_tile)      # these may take a place
        self._sums(sums, ())
        summed += [(first, self.sums[t].writes[-1][0]) for t in sums if (first := self.work.sums[t][0]).update]
        summed += self._made([s for s in self._roots() if id(s) in late])       # what changes weights comes last
        for s, placed in summed:
            self._update(s, placed)
        return self

    def _a_tile(self, tensor: str) -> bool:
        """Whether a sum is a token matrix, and no parameter's gradient."""
        first = self.work.sums[tensor][0]
        return not any(t == tensor and self.work.gradient(first, o) for o, t in first.makes.items())

    def _made(self, roots: Iterable[Statement]) -> list[tuple[Statement, Placed]]:
        """Place them; returns the gradients that are in a buffer and have to be applied."""
        placed = [(s, self._root(s)) for s in roots]
        return [(s, p) for s, p in placed if s.update and not p.updates]

    def _roots(self) -> list[Statement]:
        """The statements that make a result; those that add to a sum are placed with it."""
        results = set(self.work.results) - self.work.sums.keys()
        return [s for s in self.work.all if set(s.makes.values()) & results]

    def loops_of(self, s: Statement) -> list[tuple[Label, int, bool]]:
        """The loops that a statement stands in, outermost first."""
        if s not in self._loops_of:
            own = s.touches()
            labels = own + self._shares(s) if "each" in self.schedule.choices else own
            self._loops_of[s] = [
                (label, step, tile) for label, step, tile in self.loops if label in labels and self._may_loop(s, label)
                and ((label in own and self._tiled(s, label))
                     or not (tile or (label.carried and label not in self.blocked)))]
        return self._loops_of[s]

    def _tiled(self, s: Statement, label: Label) -> bool:
        """Of a label that is taken in blocks: whether the statement goes on in tiles of a block."""
        return s.free(label) or not (s.op.joint or s.op.carried)

    def _may_loop(self, s: Statement, label: Label) -> bool:
        carried = {s.labels[i][0] for i in s.op.carried if i in s.labels}
        for slot, tensor in s.makes.items():
            if label in carried or any(a.label is label for a in s.along(slot)):
                continue
            if slot not in s.op.adds:
                if label in s.touches() or not self._shared(tensor):
                    return False
                continue
            if s.op.slots[slot].sink and s.macs and (
                    "add" not in self.schedule.choices or self._outside(s, slot, label) or not self._small(s, slot, label)):
                return False
            if "rows" in self.schedule.choices and tensor not in self.work.sums and not self.work.gradient(s, slot) \
                    and not s.op.joint and self._outside(s, slot, label):
                return False
        return True

    def _shared(self, tensor: str) -> bool:
        """Whether all readers of a tensor may take each share of it by itself."""
        if tensor not in self._taken:
            readers = [(r, slot) for r in self.work.all for slot, t in r.reads.items() if t == tensor]
            maker = self.work.makers.get(tensor)
            self._taken[tensor] = bool(readers) and not (maker and maker.op.carried) and all(
                self._takes(r, slot) for r, slot in readers)
        return self._taken[tensor]

    def _takes(self, s: Statement, slot: str) -> bool:
        """Whether a statement may take each share of what it reads: to add them up, or to make shares of its result of them
        for others that may. What else it is linear in is no sum over the same loops."""
        if slot in s.sources and any(self._summed(s.sources[slot], s.reads[slot]) & self._summed(source, s.reads[other])
                                     for other, source in s.sources.items() if other != slot and other in s.op.linear):
            return False
        if not takes_shares(s.call, slot):
            own = not set(s.makes.values()) & (set(self.work.results) | self.work.sums.keys())
            return own and not set(s.op.once) & s.reads.keys() and all(
                o in s.op.linear.get(slot, ()) and self._shared(t) for o, t in s.makes.items())
        whole = "rows" in self.schedule.choices and any(
            t not in self.work.sums and not self.work.gradient(s, o) for o, t in s.makes.items())
        return not whole and all(self._may_loop(s, x) for x in s.touches())

    def _summed(self, s: Statement, tensor: str) -> set[Label]:
        """The labels that a tensor is a sum over, if all shares are taken by themselves."""
        out = next(o for o, t in s.makes.items() if t == tensor)
        found = set(s.touches())
        for slot, source in s.sources.items():
            if out in s.op.linear.get(slot, ()):
                found |= self._summed(source, s.reads[slot])
        return found - {a.label for a in s.along(out)}

    def _small(self, s: Statement, slot: str, label: Label) -> bool:
        """Whether a buffer for a gradient is smaller than what it is a product of, kept whole along the label."""
        looped = {x for x, _, _ in self.loops}

        def elements(along: Iterable[Along], whole: Label | None) -> int:
            """Of a usual tile: whatever the steps are, the same is chosen."""
            return prod(a.size if a.label is None or a.label is whole or a.label not in looped
                        else min(a.size, max(a.factor, USUAL)) for a in along)

        operands = sum(elements(s.along(r), label) for r, t in s.reads.items() if r in s.sources or t in self.work.sums)
        return elements(s.trained(slot), None) < operands

    def _outside(self, s: Statement, slot: str, label: Label) -> bool:
        """Whether the label's loop stands outside that of an axis of the result."""
        order = [x for x, _, _ in self.loops]
        return any(a.label in order and order.index(a.label) > order.index(label) for a in s.along(slot))

    def _shares(self, s: Statement) -> list[Label]:
        """Labels that what it reads is summed over, where it may take each share by itself: it is linear in it and adds."""
        found = []
        for slot, source in s.sources.items():
            if self._shared(s.reads[slot]):
                out = next(o for o, t in source.makes.items() if t == s.reads[slot])
                axes = {a.label for a in source.along(out)}
                found += [x for x, _, _ in self.loops_of(source) if x not in axes and self._outside(source, out, x)]
        return found

    # -- placing -------------------------------------------------------------------------------------
    def _root(self, s: Statement) -> Placed:
        block = self.open(self.root, self.loops_of(s), s, None)
        return self.place(s, block)

    def place(self, s: Statement, block: Block, within: Path = (), layouts: dict[str, str] | None = None) -> Placed:
        """Put a statement at the end of a block, behind what it needs. within: the open loops, `block` among them."""
        placed = Placed(s, block)
        path = within or block.path
        for slot in s.reads:
            placed.reads[slot] = self._require(s, slot, path[:path.index(block) + 1] if block in path else block.path, path)
        self._insert(block, placed, path)
        placed.updates = bool(s.update) and all(s.op.slots[o].sink for o in s.makes) and not self._summed_loops(placed) \
            and not self._still_read(s) and not set(s.makes.values()) & self.work.sums.keys()
        for slot, tensor in s.makes.items() if not placed.updates else ():
            instance = self._writes(s, slot, tensor, placed, (layouts or {}).get(slot, ROWS))
            placed.writes[slot] = instance
            instance.writes.append((placed, slot))
        for slot, instance in placed.reads.items():
            instance.reads.append((placed, slot))
        return placed

    def _still_read(self, s: Statement) -> bool:
        """Whether a vector is read in the region by other statements than its own gradient's."""
        return s.op.slots[next(iter(s.makes))].kind == "vector" and any(
            s.update in other.reads.values() for other in self.work.all if other is not s and not other.update)

    def _insert(self, block: Block, item: Block | Placed, path: Path) -> None:
        """At the end, but before the open loop of `path` that stands in it."""
        child = next((b for b in path if b.parent is block), None)
        at = block.items.index(child) if child in block.items else len(block.items)
        block.items.insert(at, item)

    def _writes(self, s: Statement, slot: str, tensor: str, placed: Placed, layout: str) -> Instance:
        if tensor in self.work.results and not s.update:
            return self.slot(tensor, s.along(slot))
        if tensor in self.work.sums:
            return self.sums[tensor]
        along = s.trained(slot)
        axes = {a.label for a in along}
        path: list[Block] = []
        for b in placed.path:
            if b.label not in axes and self.sums_over(s, b) and not self._share_is_read(s, tensor, b):
                break
            path.append(b)
        layout = ROWS if self._one_token(along) else s.op.layout.get(slot, layout)
        instance = Instance(tensor, along, layout, tuple(path))
        instance.shares = {b for b in path if b.label not in axes and self.sums_over(s, b)}
        self.instances.setdefault(self._key(tensor, along), []).append(instance)
        return instance

    def sums_over(self, s: Statement, block: Block) -> bool:
        """Whether a loop is one of the statement's own: its tiles add up, where they are not tiles of the result."""
        return any((x, tile) == (block.label, block.tile) for x, _, tile in self.loops_of(s))

    def _share_is_read(self, s: Statement, tensor: str, block: Block) -> bool:
        if "each" not in self.schedule.choices:
            return False
        readers = [r for r in self.work.all if tensor in r.reads.values()]
        return self._shared(tensor) and all(block.label in [x for x, _, _ in self.loops_of(r)] for r in readers)

    @staticmethod
    def _key(tensor: str, along: Sequence[Along]) -> tuple[object, ...]:
        return (tensor, *(id(a.label) for a in along))

    def slot(self, name: str, along: tuple[Along, ...]) -> Instance:
        """The region's own slot."""
        if name not in self.slots:
            self.slots[name] = Instance(name, along, ROWS, (), slot=True)
        return self.slots[name]

    # -- opening loops ---------------------------------------------------------------------------------
    def open(self, block: Block, loops: Iterable[tuple[Label, int, bool]], s: Statement, before: Block | None,
             apart: bool = False) -> Block:
        """The innermost of these loops under `block`: shared with one that is there, or (always, if `apart`) new.

        before: the open loop.
        """
        for label, step, tile in loops:
            if not tile and label not in self.blocked and label.limit and step > label.limit:
                raise NoNestError(f"tiles of {label.name} have at most {label.limit} elements")
            end = block.items.index(before) if before in block.items else len(block.items)
            times = self._times(s, label, tile)
            outer = [b.step for b in block.path if b.label is label]
            found, step = None, min(step * times, *outer, label.size)
            for at in range(end - 1, -1, -1) if not apart else ():
                item = block.items[at]
                if isinstance(item, Block) and (item.label, item.step, item.tile) == (label, step, tile) \
                        and self._may_join(s, item, block.items[at + 1:end]):
                    found = item
                    break
            if found is None:
                found = Block(label, step, tile, block, times=times)
                block.items.insert(end, found)
            block, before = found, None
        return block

    def _times(self, s: Statement, label: Label, tile: bool) -> int:
        """How many blocks at once a statement takes that has fewer tensors of a block than others have: so many fit."""
        if tile or label not in self.blocked or not (s.op.joint or s.op.carried):
            return 1
        most = max(_of_block(x, label) for x in self.work.all if x.op.joint or x.op.carried)
        return most // (_of_block(s, label) or most)

    def _may_join(self, s: Statement, block: Block, later: Sequence[Block | Placed]) -> bool:
        """Whether a statement may stand in a loop that is there: nothing it is made of is still being summed there, or is
        needed whole along it, or is made after it."""
        behind = {p for item in later for p in placed_in(item)}
        if s.update and not s.makes and any(        # the parameter is read still, or its gradient is made
                set(p.statement.makes.values()) & set(s.reads.values())
                or any(t == s.update and p.statement.takes(o) for o, t in p.statement.reads.items()) for p in behind):
            return False
        for tensor in self._made_of(s):
            for instance in self._instances(tensor):
                for placed, _ in instance.writes:
                    if placed in behind and not self._again(instance):
                        return False
                    if block in placed.path and block.label not in {a.label for a in instance.along} \
                            and self.sums_over(placed.statement, block) and block not in instance.shares:
                        return False
        for slot, tensor in s.reads.items():
            tiled = {a.label for a in s.along(slot)}
            for instance in self.instances.get(self._key(tensor, s.along(slot)), []):
                inside = any(block in p.path for p, _ in instance.writes)
                if inside and block.label in {a.label for a in instance.along} and block.label not in tiled:
                    return False
        return True

    def _instances(self, tensor: str) -> Iterator[Instance]:
        if tensor in self.sums:
            yield self.sums[tensor]
        for key, found in self.instances.items():
            if key[0] == tensor:
                yield from found

    def _again(self, instance: Instance) -> bool:
        """Whether it may be made a second time: nothing that carries a state or is made together with others."""
        source = self.work.makers.get(instance.tensor)
        return source is not None and not source.op.carried and not source.op.joint

    def _made_of(self, s: Statement) -> set[str]:
        found: set[str] = set()
        for slot, tensor in s.reads.items():
            if tensor in self.ancestors:
                found |= self.ancestors[tensor]
                continue
            own = {tensor}
            if tensor in self.work.sums:
                for c in self.work.sums[tensor]:
                    own |= self._made_of(c)
            elif slot in s.sources:
                own |= self._made_of(s.sources[slot])
            self.ancestors[tensor] = own
            found |= own
        return found

    # -- what is read ----------------------------------------------------------------------------------
    def _require(self, s: Statement, slot: str, path: Path, open_: Path) -> Instance:
        """What a statement in the loops `path` reads in a slot, made before it where it is not there."""
        tensor, along, want = s.reads[slot], s.along(slot), s.op.layout.get(slot, "")
        if tensor in self.work.sums:
            found = self._sum(tensor, open_)
            return found if want in ("", ROWS) else self._relaid(s, slot, found, path, open_, want)
        if slot not in s.sources:
            outside = self.slot(tensor, along)
            if s.op.slots[slot].kind != "tile" or want in ("", ROWS) or self._one_token(along):
                return outside
            known = self._known(tensor, along, path, open_, want)
            return known or self._copy(s, slot, tensor, path, open_, want, None)
        source = s.sources[slot]
        one = self._one_token(along)
        known = self._known(tensor, along, path, open_, "" if one else want, source)
        if known:
            return known
        native = next((source.op.layout.get(o, "") for o, t in source.makes.items() if t == tensor))
        once = self._before(source, path)
        if once != path:
            return self._kept(s, slot, path, once, open_, want, native)
        if native and want and native != want and not one:
            if want == PANEL:
                rows = self._known(tensor, along, path, open_, ROWS, source) or self._make(s, slot, path, open_, ROWS)
                return self._relaid(s, slot, rows, path, open_, want)
            return self._copy(s, slot, tensor, path, open_, want, source)
        return self._make(s, slot, path, open_, want)

    def _make(self, s: Statement, slot: str, path: Path, open_: Path, want: str) -> Instance:
        """What is read in a slot, made for it."""
        tensor, along, source = s.reads[slot], s.along(slot), s.sources[slot]
        out = next(o for o, t in source.makes.items() if t == tensor)
        if not ("each" in self.schedule.choices and self._shared(tensor)):
            path = self._complete(source, out, path)
        block, inside = self._below(source, path, open_)
        self.place(source, block, inside, {out: want or ROWS})
        return self.instances[self._key(tensor, along)][-1]

    def _kept(self, s: Statement, slot: str, path: Path, once: Path, open_: Path, want: str, native: str) -> Instance:
        """What is read in a slot in the loops `path`, made in those of `once` alone, as rows."""
        tensor, along, source = s.reads[slot], s.along(slot), s.sources[slot]
        one = self._one_token(along)
        found = self._known(tensor, along, path, open_, "" if one else ROWS, source)
        if found is None:
            copied = native == PANEL and not one
            found = self._copy(s, slot, tensor, once, open_, ROWS, source) if copied else \
                self._make(s, slot, once, open_, ROWS)
            found.kept = True
        return found if one or want in ("", ROWS) else self._relaid(s, slot, found, path, open_, want)

    def _before(self, source: Statement, path: Path) -> Path:
        """As many of these loops as a statement stands in to be made once for those that it has no index of."""
        own = {*source.touches(), *(x for x, _, _ in self.loops_of(source))}
        if source.macs and self.schedule.choices & {"store", "wait"}:
            for n, block in enumerate(path):
                if block.label not in own and any(b.label in own for b in path[n:]):
                    return path[:n]
        return path

    def _one_token(self, along: Sequence[Along]) -> bool:
        """One token at a time: a panel is a row."""
        first = along[0]
        if first.label is None:
            return first.size == 1
        step = next((step for label, step, tile in reversed(self.loops) if label is first.label), first.label.size)
        return step * first.factor == 1

    def _known(self, tensor: str, along: Sequence[Along], path: Path, open_: Path, want: str,
               source: Statement | None = None) -> Instance | None:
        """An instance that may be read from these loops."""
        for instance in reversed(self.instances.get(self._key(tensor, along), [])):
            if want and instance.layout != want and not self._one_token(along):
                continue
            common = _common(instance.path, path)
            closed, mine = instance.path[common:], path[common:]
            if not self._earlier(instance, common, path, open_):
                continue
            axes = {a.label for a in along}
            if any(b.label not in axes or b.part for b in closed):
                continue            # it was made over and over there, or is a share of a sum, or a part
            widened = {b.label for b in closed} & axes
            if widened and source is not None and self._made_anew(source) and not _is_whole(instance, closed):
                continue
            if not widened or widened - {b.label for b in mine}:
                if instance.layout == PANEL and widened:
                    continue        # a panel holds the present tile's tokens only
                return instance
            if instance.layout == PANEL:
                continue
            if source is None or instance.kept or "keep" in self.schedule.choices or source.op.carried or source.op.joint:
                return instance
        return None

    def _earlier(self, instance: Instance, common: int, path: Path, open_: Path) -> bool:
        """Whether it is made before what is put into the loops `path` next."""
        block = path[common - 1] if common else self.root
        following = path[common] if len(path) > common else next((b for b in open_ if b.parent is block), None)
        end = block.items.index(following) if following in block.items else len(block.items)
        made = [p.path[common] if len(p.path) > common else p for p, _ in instance.writes]
        return all(item in block.items[:end] for item in made)

    def _below(self, source: Statement, path: Path, open_: Path) -> tuple[Block, Path]:
        """The block that a statement goes to which is read in the loops `path`: in the innermost of them that it must be
        in, in loops of its own below. What is cheap to make again and needed whole is made in the reader's, so that it
        does not live beside all else that they make."""
        wanted = self.loops_of(source)
        matched, depth = 0, 0
        for i, block in enumerate(path):
            names = [(x, tile) for x, _, tile in wanted]
            if matched < len(wanted) and names[matched] == (block.label, block.tile):
                matched, depth = matched + 1, i + 1
            elif (block.label, block.tile) in names[matched:]:
                break
        apart = matched < len(wanted) and self._made_anew(source)
        prefix = path if apart else path[:depth]
        at = prefix[-1] if prefix else self.root
        child = next((b for b in open_ if b.parent is at), None)
        block = self.open(at, wanted[matched:], source, child, apart)
        return block, open_ if block is at else block.path

    def _made_anew(self, s: Statement) -> bool:
        """Whether a statement is cheap, and made of nothing but the region's slots: each reader has one of its own."""
        return is_cheap(s.op, s.site) and not set(s.reads.values()) & self.work.sums.keys() \
            and all(map(self._made_anew, s.sources.values()))

    def _complete(self, source: Statement, out: str, path: Path) -> Path:
        """As many of these loops as the tensor may be made in so that it is complete where it is read: none that it is
        summed over."""
        axes = {a.label for a in source.along(out)}
        for n, block in enumerate(path):
            if block.label not in axes and self.sums_over(source, block):
                return path[:n]
        return path

    def _copy(self, s: Statement, slot: str, tensor: str, path: Path, open_: Path, want: str,
              source: Statement | None) -> Instance:
        """The tensor in another layout, copied tile by tile where it is made (a slot of the region: where it is read)."""
        along = s.along(slot)
        copy = _copier(tensor, along, s)
        if source is not None:
            copy.sources["x"] = source
        block, inside = self._below(copy, path, open_)
        placed = Placed(copy, block)
        if source is None:
            placed.reads["x"] = self.slot(tensor, along)
        else:
            there = block.path
            known = self._known(tensor, along, there, inside, "", source)
            if known is None:
                at, within = self._below(source, there, inside)
                self.place(source, at, within)
                known = self.instances[self._key(tensor, along)][-1]
            placed.reads["x"] = known
        placed.reads["x"].reads.append((placed, "x"))
        self._insert(block, placed, inside)
        shares = placed.reads["x"].shares & set(block.path)
        instance = Instance(tensor, along, want, block.path, writes=[(placed, "y")], shares=shares)
        placed.writes["y"] = instance
        self.instances.setdefault(self._key(tensor, along), []).append(instance)
        return instance

    def _relaid(self, s: Statement, slot: str, found: Instance, path: Path, open_: Path, want: str) -> Instance:
        """What is there in another layout, copied where it is read."""
        mine = {b.label for b in path}
        along = tuple(a if a.label in mine else Along(None, a.factor, a.size) for a in s.along(slot))
        copy = _copier(found.tensor, along, s)
        block, inside = self._below(copy, path, open_)
        placed = Placed(copy, block, {"x": found})
        found.reads.append((placed, "x"))
        self._insert(block, placed, inside)
        shares = found.shares & set(block.path)
        instance = Instance(found.tensor, s.along(slot), want, block.path, writes=[(placed, "y")], shares=shares)
        placed.writes["y"] = instance
        self.instances.setdefault(self._key(found.tensor, instance.along), []).append(instance)
        return instance

    # -- sums and updates --------------------------------------------------------------------------------
    def _sum(self, tensor: str, open_: Path) -> Instance:
        """The tensor that several statements add to, complete."""
        self._sums([tensor], open_)
        return self.sums[tensor]

    def _sums(self, tensors: Sequence[str], open_: Path) -> None:
        """Tensors that stand whole, complete: the first terms of all, then the second. The first term writes where it comes
        before the others everywhere; else zeros are filled in."""
        new = [t for t in tensors if t not in self.sums]
        for tensor in new:
            term = self.work.sums[tensor][0]
            slot = next(o for o, t in term.makes.items() if t == tensor)
            along = tuple(Along(None, a.factor, a.size) for a in term.along(slot))
            outside = tensor in self.work.results and not term.update
            self.sums[tensor] = self.slot(tensor, along) if outside else Instance(tensor, along, ROWS, ())
        child = open_[0] if open_ else None
        terms = {tensor: self.work.sums[tensor] for tensor in new}
        for n in range(max(map(len, terms.values()), default=0)):
            for term in (ts[n] for ts in terms.values() if n < len(ts)):
                block = self.open(self.root, self.loops_of(term), term, child)
                self.place(term, block, open_ if block is self.root else ())
        for tensor, ts in terms.items():
            first, *others = self.sums[tensor].writes
            if _begins(ts[0], tensor) or all(self._precedes(first, other) for other in others):
                continue
            filled = Placed(_filler(tensor, self.sums[tensor].along, ts[0]), self.root)
            filled.writes["y"] = self.sums[tensor]
            self.sums[tensor].writes.insert(0, (filled, "y"))
            at = next(i for i, item in enumerate(self.root.items)
                      if any(tensor in p.statement.makes.values() for p in placed_in(item)))
            self.root.items.insert(at, filled)

    def _precedes(self, first: tuple[Placed, str], other: tuple[Placed, str]) -> bool:
        """Whether one write comes before another in each iteration of the loops that both are in, and these take the same
        part of the tensor to both."""
        (a, _), (b, _) = first, other
        n = _common(a.path, b.path)
        for block in a.path[:n]:
            mine, its = ([axis.label is block.label for axis in p.statement.along(slot)] for p, slot in (first, other))
            if mine != its:
                return False
        items = (a.path[n - 1] if n else self.root).items
        return items.index(a.path[n] if len(a.path) > n else a) < items.index(b.path[n] if len(b.path) > n else b)

    def _summed_loops(self, placed: Placed) -> list[Label]:
        """Of an update: the loops that its gradient is summed over."""
        s = placed.statement
        axes = {a.label for slot in s.makes for a in s.along(slot)}
        return [b.label for b in placed.path if b.label and b.label not in axes]

    def _update(self, s: Statement, made: Placed) -> None:
        """A gradient that was summed in a buffer is applied to its parameter."""
        (slot, instance), = made.writes.items()
        update = _updater(s, slot)
        block, loops = self.root, self.loops_of(update)
        for outer in made.path if s.op.slots[slot].kind == "matrix" else ():    # there is one window of it at a time
            if (outer.label, outer.tile) not in [(x, tile) for x, _, tile in loops]:
                break
            block, loops = outer, [x for x in loops if (x[0], x[2]) != (outer.label, outer.tile)]
        block = self.open(block, loops, update, None)
        read = next(slot for slot, t in update.reads.items() if t == instance.tensor)
        placed = Placed(update, block, {read: instance}, updates=True)
        for slot in update.reads.keys() - {read}:
            placed.reads[slot] = self.slot(update.reads[slot], update.along(slot))
        block.items.append(placed)
        instance.reads.append((placed, read))


def _begins(term: Statement, tensor: str) -> bool:
    """Whether a term can only write the sum, not add to it."""
    return any(t == tensor and o not in term.op.adds for o, t in term.makes.items())


def _of_block(s: Statement, label: Label) -> int:
    """Tensors that a statement reads or makes along a label."""
    return sum(any(a.label is label for a in s.along(slot)) for slot in (*s.reads, *s.makes))


def placed_in(item: Block | Placed) -> Iterator[Placed]:
    if isinstance(item, Placed):
        yield item
    else:
        for i in item.items:
            yield from placed_in(i)


def _is_whole(instance: Instance, loops: Path) -> bool:
    """Whether something reads it behind these loops, in which it is made."""
    return any(not set(loops) & set(p.path) for p, _ in instance.reads)


def _common(a: Path, b: Path) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] is b[n]:
        n += 1
    return n


def _plain(op: str, slot_axes: dict[str, tuple[Along, ...]], where: Statement, reads: dict[str, str],
           makes: dict[str, str]) -> Statement:
    """A statement of an operation whose slots all have the axes given, by position."""
    operation = REGISTRY[op]
    axes = next(iter(slot_axes.values()))
    axes = (Along(None, 1, 1),) * (2 - len(axes)) + axes        # a vector is one row
    shape = tuple(a.size for a in axes)
    site = Site(dict.fromkeys((*reads, *makes), shape), operation.defaults(), frozenset(makes))
    s = Statement(operation, Call(op, reads, makes, operation.defaults(), where=where.call.where), reads, makes, site)
    for axis, along in zip(operation.axes(next(iter(makes or reads))), axes, strict=True):
        if along.label is not None:
            s.labels[axis.index] = (along.label, along.factor)
    return s


def _copier(tensor: str, along: tuple[Along, ...], where: Statement) -> Statement:
    return _plain("copy", {"x": along}, where, {"x": tensor}, {"y": tensor})


def _filler(tensor: str, along: tuple[Along, ...], where: Statement) -> Statement:
    return _plain("fill", {"y": along}, where, {}, {"y": tensor})


def _updater(s: Statement, slot: str) -> Statement:
    if s.op.slots[slot].kind == "matrix":
        return _applier(s, slot)
    update = _plain("sgd", {"g": s.along(slot)}, s, {"g": s.makes[slot]}, {})
    update.update = s.update
    return update


def _applier(s: Statement, slot: str) -> Statement:
    """Applies a buffer with the gradient of (the trained part of) a weight's window."""
    op = REGISTRY["apply"]
    weight = slot.removeprefix("d_")
    reads = {"w": s.update, "d_w": s.makes[slot]}
    site = Site({"w": s.site.shapes[weight]}, {}, frozenset(), {"w": s.site.parts[weight]} if weight in s.site.parts else {})
    applied = Statement(op, Call(op.name, reads, {}, where=s.call.where), reads, {}, site, update=s.update)
    for axis, along in zip(op.axes("w"), s.along(slot), strict=True):
        if along.label is not None:
            applied.labels[axis.index] = (along.label, along.factor)
    return applied
