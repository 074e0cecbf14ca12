"""What a nest's loops sum up, and how long its tensors live."""

from __future__ import annotations

from compilation.regions.judged import Called, Judged, chain
from compilation.regions.loops import Loop, TileCall


def find_homes(known: Judged) -> None:
    """The loops that all uses of a tensor stand in, but for those that it is summed or carried over."""
    for c in known.calls.values():
        for use in (*c.reads, *c.writes):
            known.users.setdefault(use.tensor, []).append(c)
        if id(c.call) in known.work:
            known.users.setdefault(known.work[id(c.call)], []).append(c)
    for t, users in known.users.items():
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
                    across |= chain(c.scope, variable)
        cut = next((n for n, loop in enumerate(home) if loop.variable in across), len(home))
        t.home = tuple(home[:cut])


def check_sums(known: Judged) -> None:
    """Of every call, that what it reads and makes is whole, or a share that is summed up later."""
    for c in known.calls.values():
        known.at = c.name
        _sums(known, c)
    known.at = ""


def _sums(known: Judged, c: Called) -> None:
    """Of what loops each result holds only a share: such may be read by what is linear in it and sums it up."""
    carried = set(c.call.carried)
    for use in c.writes:
        slot = f"d_{use.slot}" if use.update and use.slot != c.op.own_update else use.slot
        total: set[str] = set()
        for index in c.op.summed(slot) if slot in c.op.line.axes else ():
            total |= c.followed(index) if index not in carried else set()
        taken: set[str] = set()
        for r in c.reads:
            needed = slot not in c.op.slots or slot in c.op.needed_for.get(r.slot, (slot,))
            if not (r.tensor.shares and needed):
                continue
            inside = {loop.variable for loop in c.around}
            if missing := r.tensor.shares - inside:
                known.fail(f"{r.tensor.name} is summed over {', '.join(sorted(missing))}, and read as a whole")
            if slot not in c.op.linear.get(r.slot, ()):
                known.fail(f"{r.tensor.name} is only a share of a sum over {', '.join(sorted(r.tensor.shares))}, "
                          f"and {slot} is not linear in it")
            if twice := r.tensor.shares & taken:
                known.fail(f"{slot} is a product of shares of two sums over {', '.join(sorted(twice))}")
            taken |= r.tensor.shares
        total |= taken
        drives = {v for a in use.axes if a.loop for v in chain(c.scope, a.loop)}
        if cut := sorted(v for v in total if c.scope.loops[v].part):
            known.fail(f"{use.tensor.name} is summed over {cut[0]}, which walks a part of its index")
        over = c.call.adds.get(use.slot) if not use.update else None
        beyond = {loop.variable for loop in c.around[len(use.tensor.home):] if not c.scope.whole(loop.variable)}
        if over is not None:
            doubled = (set(over) & beyond if over else beyond) - total - drives
            if doubled:
                known.fail(f"it adds the same to {use.tensor.name} in each iteration of {', '.join(sorted(doubled))}")
            if unread := [s for s in c.op.once if s in c.call.inputs and not over]:
                known.fail(f"it always adds, so that {unread[0]} is never read")
            total -= set(over) if over else beyond
        if taken & total and (again := [s for s in c.op.once if s in c.call.inputs]):
            known.fail(f"{again[0]} is in each share of a sum over {', '.join(sorted(taken & total))}")
        if total and use.tensor.kind != "stored":
            known.fail(f"{use.tensor.name} gets only a share of the sum over {', '.join(sorted(total))}")
        use.tensor.shares |= total


def check_sharing(known: Judged) -> None:
    """No two tensors overlap in scratch while both live, but those in the very same place, which are followed."""
    order: dict[int, tuple[int, int]] = {}

    def number(items: tuple[Loop | TileCall, ...], n: int) -> int:
        for item in items:
            first, n = n, number(item.body, n) if isinstance(item, Loop) else n + 1
            order[id(item)] = (first, n)
        return n

    number(known.nest.body, 0)
    lives = []
    for t, users in known.users.items():
        if t.stored is None or t.stored.offset is None:
            continue
        spans = [order[id((*c.around, c.call)[len(t.home)])] for c in users]
        lives.append((t, t.stored.offset, t.stored.offset + t.stored.type.bytes, min(a for a, _ in spans),
                      max(b for _, b in spans)))
    for i, (t, low, high, first, last) in enumerate(lives):
        for u, low2, high2, first2, last2 in lives[:i]:
            if low < high2 and low2 < high and first < last2 and first2 < last and t.memory != u.memory:
                known.fail(f"{t.name} (bytes {low} to {high}) overlaps {u.name} ({low2} to {high2}), and both live at once")
