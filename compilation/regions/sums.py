"""Sums of several contributions: chains of additions that become one tensor, to which all terms are added in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from compilation.ops import REGISTRY
from compilation.program import Call

ADD = "add"     # the operation whose gradient is its input: n-ary sums are chains of it


@dataclass
class Chain:
    """Additions that make a tensor, `root`, of terms. summable: whether every term's call can add to what stands there."""

    root: str
    summable: bool
    terms: list[str] = field(default_factory=list)
    adds: list[Call] = field(default_factory=list)


def chains(calls: list[Call], results: Collection[str]) -> list[Chain]:
    """The chains of additions whose terms are made by calls that can add to what stands there; or of two, by one that can
    and one that comes first."""
    made = {t: c for c in calls for t in c.outputs.values()}
    uses = Counter(t for c in calls for t in c.inputs.values())

    def inside(tensor: str) -> bool:
        return tensor in made and uses[tensor] == 1 and tensor not in results

    def summable(tensor: str) -> bool:
        if not inside(tensor):
            return False
        call = made[tensor]
        if call.op == ADD:
            return all(map(summable, call.inputs.values()))
        slot = next(s for s, t in call.outputs.items() if t == tensor)
        return slot in REGISTRY[call.op].adds and not REGISTRY[call.op].once & call.inputs.keys()

    def collect(call: Call, chain: Chain) -> None:
        chain.adds.append(call)
        for t in call.inputs.values():
            if made[t].op == ADD:
                collect(made[t], chain)
            else:
                chain.terms.append(t)

    found: list[Chain] = []
    taken: set[int] = set()
    for call in reversed(calls):
        terms = list(call.inputs.values())
        if call.op != ADD or id(call) in taken or len(set(terms)) != 2:
            continue
        chain = Chain(call.outputs["y"], all(map(summable, terms)))
        if chain.summable:
            collect(call, chain)
        elif any(summable(b) and made[b].op != ADD and inside(a) and made[a].op != ADD for a, b in (terms, terms[::-1])):
            chain.terms, chain.adds = terms, [call]
        else:
            continue
        taken |= set(map(id, chain.adds))
        found.append(chain)
    return found


def is_shared(chain: Chain, calls: list[Call], results: Collection[str]) -> bool:
    """Whether a sum need not be made: all that read it can take each term by itself, and add."""
    return chain.summable and chain.root not in results and all(
        takes_shares(c, s) for c in calls for s, t in c.inputs.items() if t == chain.root)


def takes_shares(call: Call, slot: str) -> bool:
    """Whether all that a call makes is linear in what it reads there, and can be summed: a linear map of a sum is the sum of
    the maps."""
    op = REGISTRY[call.op]
    return all(o in op.linear.get(slot, ()) and o in op.adds for o in call.outputs)


def merged(calls: Iterable[Call], standing: Iterable[Chain],
           shared: Iterable[Chain]) -> tuple[dict[str, list[Call]], list[Call]]:
    """(tensor -> the calls that add to it, all calls). Chains that stand are one tensor each; where one is shared, there is
    a call of every reader for each term."""
    standing, shared = list(standing), list(shared)
    roots = {t: chain.root for chain in standing for t in chain.terms}
    shares = {chain.root: chain.terms for chain in shared}
    gone = {id(add) for chain in (*standing, *shared) for add in chain.adds}
    out: list[Call] = []
    sums: dict[str, list[Call]] = {}
    for c in calls:
        if id(c) in gone:
            continue
        if roots.keys() & set(c.outputs.values()):
            c = replace(c, outputs={s: roots.get(t, t) for s, t in c.outputs.items()})
        each = [replace(c, inputs={**c.inputs, slot: term}) for slot, t in c.inputs.items() if t in shares
                for term in shares[t]]
        for part in each or [c]:
            for t in part.outputs.values():
                if each or t in roots.values():
                    sums.setdefault(t, []).append(part)
            out.append(part)
    for added in sums.values():         # what cannot add comes first
        added.sort(key=lambda c: all(s in REGISTRY[c.op].adds for s in c.outputs))
    return sums, out
