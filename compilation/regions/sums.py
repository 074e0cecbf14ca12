"""Sums of several contributions: chains of additions that become one tensor, to which all terms are added in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from compilation.ops import REGISTRY
from compilation.program import Call
from compilation.regions.loops import PANEL
from compilation.types import Type

ADD = "add"     # the operation whose gradient is its input: n-ary sums are chains of it


@dataclass
class Chain:
    """Additions that make `root` of terms. adders: the terms that their calls can add to what stands there. rest: those that
    come first: one that is written there by its own call, or, with some adders that stay behind, added up by `begun`."""

    root: str
    adds: list[Call]
    adders: list[str]
    rest: list[str]
    begun: bool

    @property
    def terms(self) -> list[str]:
        return self.adders + self.rest

    @property
    def written(self) -> list[str]:
        """The terms whose calls write into the sum or add to it."""
        return self.adders if self.begun else self.terms

    @property
    def shares(self) -> list[str]:
        """The terms that a reader takes each by itself, those of `begun` as one."""
        return self.adders + ([f"{self.root}.0"] if self.begun else self.rest)

    def first(self, root: str) -> Iterator[Call]:
        """The additions that are left, the last of which makes `root`."""
        before = self.rest[0] if self.begun else ""
        for n, t in enumerate(self.rest[1:] if self.begun else (), 1):
            name = root if n == len(self.rest) - 1 else f"{self.root}.{n}"
            yield Call(ADD, {"a": before, "b": t}, {"y": name}, where=self.adds[0].where)
            before = name


def chains(calls: list[Call], results: Collection[str], types: Mapping[str, Type]) -> list[Chain]:
    """The chains of additions that can be sums in one tensor.

    What is not made by a call that can add comes first: one term that is written for the sum alone is written there; else
    the others are added up, and the last addition writes there.
    """
    made = {t: c for c in calls for t in c.outputs.values()}
    uses = Counter(t for c in calls for t in c.inputs.values())

    def inner(tensor: str) -> bool:
        """Whether a tensor is made for one reader alone."""
        return tensor in made and uses[tensor] == 1 and tensor not in results

    def can_add(tensor: str) -> bool:
        return inner(tensor) and _slot(made[tensor], tensor) in REGISTRY[made[tensor].op].adds

    def adder(tensor: str) -> bool:
        """Whether what makes a tensor may add it to the sum."""
        return can_add(tensor) and not REGISTRY[made[tensor].op].once & made[tensor].inputs.keys()

    def terms_of(call: Call) -> tuple[list[str], list[Call]]:
        """What is added up, and the additions."""
        terms: list[str] = []
        additions = [call]
        for t in call.inputs.values():
            below, more = terms_of(made[t]) if inner(t) and made[t].op == ADD else ([t], [])
            terms, additions = terms + below, additions + more
        return terms, additions

    found: list[Chain] = []
    taken: set[int] = set()
    for call in reversed(calls):
        if call.op != ADD or id(call) in taken:
            continue
        terms, adds = terms_of(call)
        adders = [t for t in terms if adder(t)]
        rest = [t for t in terms if t not in adders]
        if len(set(terms)) < len(terms) or not adders:
            continue
        if len(rest) == 1 and (not inner(rest[0]) or can_add(rest[0]) or _is_panel(made[rest[0]], rest[0], types)):
            rest.append(adders.pop(0))
        if adders:
            taken |= set(map(id, adds))
            found.append(Chain(call.outputs["y"], adds, adders, rest, len(rest) > 1))
    return found


def is_shared(chain: Chain, calls: Iterable[Call], results: Collection[str]) -> bool:
    """Whether a sum need not be made: all that read it can take each term by itself, and add."""
    return chain.root not in results and all(
        takes_shares(c, s) for c in calls for s, t in c.inputs.items() if t == chain.root)


def takes_shares(call: Call, slot: str) -> bool:
    """Whether all that a call makes is linear in what it reads there, and can be summed: a linear map of a sum is the sum of
    the maps."""
    op = REGISTRY[call.op]
    return all(o in op.linear.get(slot, ()) and o in op.adds for o in call.outputs)


def merged(calls: list[Call], standing: list[Chain], shared: list[Chain],
           types: dict[str, Type]) -> tuple[set[str], list[Call]]:
    """(the tensors that several calls add to, all calls). Chains that stand are one tensor each, to which what is made as a
    panel is copied; where one is shared, there is a call of every reader for each term. types: those of new tensors are put
    there."""
    roots = {t: chain.root for chain in standing for t in chain.written}
    shares = {chain.root: chain.shares for chain in shared}
    gone: dict[int, list[Call]] = {id(add): [] for chain in (*standing, *shared) for add in chain.adds}
    for chain in (*standing, *shared):
        left = list(chain.first(chain.root if chain in standing else chain.shares[-1]))
        gone[id(chain.adds[0])] = left
        types |= {c.outputs["y"]: types[chain.root] for c in left}
    sums = set(roots.values())
    out: list[Call] = []
    for c in calls:
        slot = next((s for s, t in c.inputs.items() if t in shares), None)
        if id(c) in gone:
            out += gone[id(c)]
        elif slot is not None:
            for t in shares[c.inputs[slot]]:
                outputs = {s: roots.get(o, o) for s, o in c.outputs.items()}
                out.append(replace(c, inputs={**c.inputs, slot: t}, outputs=outputs))
                sums.update(outputs.values())
        elif into := {s: t for s, t in c.outputs.items() if t in roots}:
            copied = [s for s, t in into.items() if _is_panel(c, t, types)]
            own = {s: roots[t] for s, t in into.items() if s not in copied}
            out.append(replace(c, outputs={**c.outputs, **own}))
            out += [Call("copy", {"x": into[s]}, {"y": roots[into[s]]}, where=c.where) for s in copied]
        else:
            out.append(c)
    return sums, out


def _is_panel(call: Call, tensor: str, types: Mapping[str, Type]) -> bool:
    """Whether a call makes a tensor as a panel."""
    return REGISTRY[call.op].layout.get(_slot(call, tensor)) == PANEL and types[tensor].shape[0] > 1


def _slot(call: Call, tensor: str) -> str:
    """The output slot that makes a tensor."""
    return next(s for s, t in call.outputs.items() if t == tensor)
