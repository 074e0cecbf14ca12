"""How a region is looped, as text: the loops from the outermost in, then choices. ``h/1 m/50 n/16 m/16 rows keep``.

A label that stands twice is taken in blocks (the first) and the blocks in tiles (the second): calls that need many elements
of it at once see a block, calls whose results have it a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

CHOICES = {
    "rows": "a sum over a loop outside its result's own is made at once, when all its terms are there",
    "keep": "what is made in one loop and read in another is kept; else it is made again",
    "store": "what is read again and again in a loop that it has no index of is made before that loop, once",
    "wait": "as store, in columns of the result that the outermost loop has yet to reach; its last tile makes it again",
    "each": "a linear map of a sum over tiles is taken of each tile's share, and these are summed",
    "add": "gradients of weights are summed tile by tile in a buffer of their own; else made at once from whole operands",
    "split": "what an operation makes together is made in two loops, the shared values again",
}


@dataclass(frozen=True)
class Schedule:
    """loops: (label, step), outermost first. choices: words of CHOICES."""

    loops: tuple[tuple[str, int], ...]
    choices: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return " ".join([*(f"{name}/{step}" for name, step in self.loops), *(c for c in CHOICES if c in self.choices)])


@cache
def read(text: str) -> Schedule:
    """Raises ValueError for text that is no schedule."""
    loops: list[tuple[str, int]] = []
    choices: set[str] = set()
    for word in text.split():
        name, slash, step = word.partition("/")
        if slash and name and step.isdigit() and int(step) > 0 and not choices:
            loops.append((name, int(step)))
        elif word in CHOICES:
            choices.add(word)
        else:
            raise ValueError(f"{word!r} in the schedule {text!r} is neither label/step nor one of {', '.join(CHOICES)}")
    return Schedule(tuple(loops), frozenset(choices))
