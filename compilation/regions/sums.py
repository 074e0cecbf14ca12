"""Sums of a region: additions become one tensor that the calls which make the terms add to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from compilation.ops import REGISTRY
from compilation.program import Call
from compilation.regions.loops import PANEL
from compilation.types import Type

ADD = "add"     # the operation whose gradient is its input: n-ary sums are chains of it


def merge_sums(calls: list[Call], results: set[str], types: dict[str, Type]) -> tuple[set[str], list[Call]]:
    """The sums, and the calls, which add to them. types: gets those of tensors that are new.

    What is not made by calls that can add comes first: one term that is written for the sum alone is written there; else
    the others are added up, and the last addition writes there. What is made as a panel is copied there. Where all that
    is made of a sum is linear in it, there is none: it is made of each term, and summed.
    """
    known = _Known(calls, results, types)
    roots: dict[str, str] = {}          # term -> the sum that it is a part of
    shared: set[str] = set()
    gone: dict[int, list[Call]] = {}    # addition -> what stands in its place
    for call in reversed(calls):
        if call.op != ADD or id(call) in gone:
            continue
        terms, additions = known.terms_of(call)
        root = call.outputs["y"]
        adders = [t for t in terms if known.adds(t)]
        rest = [t for t in terms if t not in adders]
        if len(rest) == 1 and adders and not known.begins(rest[0]):
            rest.append(adders.pop(0))
        if len(set(terms)) < len(terms) or not adders:
            continue
        gone |= {id(c): [] for c in additions} | {id(call): known.added_up(rest, call)}
        roots |= dict.fromkeys(adders if len(rest) > 1 else terms, root)
        readers = [(c, s) for c in calls for s, t in c.inputs.items() if t == root]
        if not rest and root not in results and all(takes_shares(c, s) for c, s in readers):
            shared.add(root)
    out: list[Call] = []
    sums = set(roots.values()) - shared
    for c in calls:
        slot = next((s for s, t in c.inputs.items() if t in shared), None)
        if id(c) in gone:
            out += gone[id(c)]
        elif slot is None:
            out += known.into_sums(c, {t: root for t, root in roots.items() if root not in shared})
        else:
            outputs = {s: roots.get(t, t) for s, t in c.outputs.items()}
            sums.update(outputs.values())
            out += [replace(c, inputs={**c.inputs, slot: t}, outputs=outputs)
                    for t, root in roots.items() if root == c.inputs[slot]]
    return sums, out


@dataclass
class _Known:
    """What the calls say about a term of a sum."""

    calls: list[Call]
    results: set[str]
    types: dict[str, Type]

    def __post_init__(self) -> None:
        self.made = {t: c for c in self.calls for t in c.outputs.values()}
        self.uses = Counter(t for c in self.calls for t in c.inputs.values())

    def inner(self, tensor: str) -> bool:
        """Whether a tensor is made for one reader alone."""
        return tensor in self.made and self.uses[tensor] == 1 and tensor not in self.results

    def _slot(self, tensor: str) -> str:
        return next(s for s, t in self.made[tensor].outputs.items() if t == tensor)

    def _can_add(self, tensor: str) -> bool:
        return self._slot(tensor) in REGISTRY[self.made[tensor].op].adds

    def adds(self, tensor: str) -> bool:
        """Whether what makes a tensor may add it to the sum."""
        return self.inner(tensor) and self._can_add(tensor) \
            and not REGISTRY[self.made[tensor].op].once & self.made[tensor].inputs.keys()

    def begins(self, tensor: str) -> bool:
        """Whether what makes a tensor may write it where the sum is to be."""
        return self.inner(tensor) and not self._can_add(tensor) and not self._panel(tensor)

    def _panel(self, tensor: str) -> bool:
        native = REGISTRY[self.made[tensor].op].layout.get(self._slot(tensor))
        return native == PANEL and self.types[tensor].shape[0] > 1

    def terms_of(self, call: Call) -> tuple[list[str], list[Call]]:
        """What is added up, and the additions."""
        terms: list[str] = []
        additions = [call]
        for t in call.inputs.values():
            below, more = self.terms_of(self.made[t]) if self.inner(t) and self.made[t].op == ADD else ([t], [])
            terms, additions = terms + below, additions + more
        return terms, additions

    def added_up(self, terms: list[str], call: Call) -> list[Call]:
        """Additions of two terms and more in place of one, in its result."""
        root = call.outputs["y"]
        made: list[Call] = []
        for n, t in enumerate(terms[1:], 1):
            name = root if n == len(terms) - 1 else f"{root}.{n}"
            self.types[name] = self.types[root]
            made.append(Call(ADD, {"a": made[-1].outputs["y"] if made else terms[0], "b": t}, {"y": name}, where=call.where))
        return made

    def into_sums(self, call: Call, roots: dict[str, str]) -> list[Call]:
        """The call, its outputs as terms of sums, and copies of those that are panels."""
        copied = [t for t in call.outputs.values() if t in roots and self._panel(t)]
        outputs = {s: t if t in copied else roots.get(t, t) for s, t in call.outputs.items()}
        return [replace(call, outputs=outputs),
                *(Call("copy", {"x": t}, {"y": roots[t]}, where=call.where) for t in copied)]


def takes_shares(call: Call, slot: str) -> bool:
    """Whether all that a call makes is linear in what it reads there, and can be summed: a linear map of a sum is the sum of
    the maps."""
    op = REGISTRY[call.op]
    return all(o in op.linear.get(slot, ()) and o in op.adds for o in call.outputs)
