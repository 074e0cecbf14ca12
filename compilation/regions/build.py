"""A nest as its schedule has it: with `wait`, the last tile of the outermost loop is by itself.

What is kept for all but the last tile may stand where later tiles write their results; behind the last there is nothing, so
that it makes again what the others keep.
"""

from __future__ import annotations

from compilation.regions.nest import EARLY, LAST, Block, Builder, Instance, NoNestError, placed_in
from compilation.regions.schedule import Schedule
from compilation.regions.statements import Statements


def build(work: Statements, schedule: Schedule) -> Builder:
    """Raises NoNestError where the schedule cannot be followed."""
    builder = Builder(work, schedule).build()
    if "wait" in schedule.choices:
        kept = [i for found in builder.instances.values() for i in found if i.kept and i.path]
        if not kept:
            raise NoNestError("nothing is kept")
        builder.schedule = Schedule(schedule.loops, schedule.choices - {"wait"})
        for block in dict.fromkeys(i.path[0] for i in kept):
            _cut(builder, block)
    return builder


def _cut(builder: Builder, block: Block) -> None:
    """Puts the last tile of a loop into a loop of its own behind it, with what it makes made anew."""
    label, inside = block.label, list(placed_in(block))
    assert label is not None
    if label.size % block.step or label.size == block.step:
        raise NoNestError(f"tiles of {block.step} {label.name} have no last one of their size")
    ids = {id(p) for p in inside}
    made = [p for p in inside if any(i.slot or {id(q) for q, _ in i.reads} - ids for i in p.writes.values())]
    if any(p.updates for p in inside) or any(
            all(a.label is not label for a in i.along) for p in made for i in p.writes.values()):
        raise NoNestError(f"what is summed over {label.name} has no tile by itself")
    rest = Block(label, block.step, False, block.parent, part=LAST)
    block.part = EARLY
    builder.root.items.insert(builder.root.items.index(block) + 1, rest)
    same: dict[int, Instance] = {}      # what the last tile makes -> what the others have made
    for p in made:
        loops = [x for x in builder.loops_of(p.statement) if x[0] is not label or x[2]]
        again = builder.place(p.statement, builder.open(rest, loops, p.statement, None),
                              layouts={slot: i.layout for slot, i in p.writes.items()})
        same |= {id(again.writes[slot]): i for slot, i in p.writes.items() if not i.slot}
    for p in placed_in(rest):
        for found, write in ((p.reads, False), (p.writes, True)):
            for slot, one in {s: same[id(i)] for s, i in found.items() if id(i) in same}.items():
                found[slot] = one
                (one.writes if write else one.reads).append((p, slot))
