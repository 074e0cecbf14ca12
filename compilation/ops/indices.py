"""The index line of an operation, such as ``x: n c, w: o c, b: o -> y: n o``: what the axes of its slots are, and must
agree on.

An axis is

- an index (``n``), or ``[d]``: an index that is needed whole, never in tiles;
- ``h*d`` (or ``h*[d]``): h major, d minor. d is needed whole: a tile of k of h has k * d elements along this axis;
- ``3*d``: a multiple of an index; a number (``1``);
- ``*n``, first in a slot: all leading axes as one index. Slots that have one agree in shape, whatever its rank.

``*`` alone stands for any shape, the same for all slots marked so. Leading axes of one element do not count: a bias may
be (1, 1, c). Outputs follow ``->``; operations that are no leaves (`Op.leaf`) need not have them in the line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """factor * index * inner elements. `index` is "" for a number (then that is the factor), `inner` for no composite."""

    index: str
    inner: str = ""
    factor: int = 1
    folds: bool = False         # all leading axes

    def __str__(self) -> str:
        names = [str(self.factor)] * (self.factor > 1 or not self.index) + [n for n in (self.index, self.inner) if n]
        return "*" * self.folds + "*".join(names)

    @property
    def indices(self) -> tuple[str, ...]:
        """Major first."""
        return tuple(n for n in (self.index, self.inner) if n)

    def size(self, sizes: Mapping[str, int]) -> int:
        """Elements, given those of the indices."""
        return self.factor * math.prod(sizes[n] for n in self.indices)


Axes = tuple[Axis, ...]
ANY = (Axis("*"),)


@dataclass(frozen=True)
class Line:
    """A parsed index line. axes: slot -> its axes, inputs and outputs; whole: the indices that are never tiled."""

    axes: Mapping[str, Axes]
    outputs: tuple[str, ...]
    whole: frozenset[str]

    def indices(self, slots: Iterable[str]) -> tuple[str, ...]:
        """The indices in the axes of these slots, in the order of the line; those that are needed whole, too."""
        chosen = set(slots)
        found = [n for s, axes in self.axes.items() if s in chosen and axes != ANY for a in axes for n in a.indices]
        return tuple(dict.fromkeys(found))

    def shape(self, slot: str, sizes: Mapping[str, int]) -> Shape:
        """Of a slot (in the line with axes), given the sizes of its indices: those of a window give the window's."""
        return tuple(a.size(sizes) for a in self.axes[slot])


@cache
def parse(line: str) -> Line:
    """The line as data.

    >>> line = parse("x: n h*[d], gamma: [d] -> y: n h*[d]")
    >>> [str(a) for a in line.axes["y"]], line.outputs, sorted(line.whole)
    (['n', 'h*d'], ('y',), ['d'])
    """
    ins, _, outs = line.partition("->")
    axes: dict[str, Axes] = {}
    whole: set[str] = set()
    listed = [[part.split(":") for part in half.split(",") if part.strip()] for half in (ins, outs)]
    for name, text in (*listed[0], *listed[1]):
        axes[name.strip()] = tuple(_axis(token, whole) for token in text.split())
    return Line(axes, tuple(name.strip() for name, _ in listed[1]), frozenset(whole))


def _axis(token: str, whole: set[str]) -> Axis:
    if token == "*":
        return ANY[0]
    if token.startswith("*"):
        return Axis(_index(token[1:], whole), folds=True)
    first, _, second = token.partition("*")
    if first.isdigit():
        return Axis(_index(second, whole), factor=int(first))
    if second:
        inner = _index(second, whole)
        whole.add(inner)
        return Axis(_index(first, whole), inner)
    return Axis(_index(first, whole))


def _index(text: str, whole: set[str]) -> str:
    name = text.strip("[]")
    if name != text:
        whole.add(name)
    return name


def bind(line: str, shapes: Mapping[str, Shape], known: Mapping[str, int] | None = None) -> dict[str, int]:
    """Index -> size, of the indices in the slots that have a shape.

    known: sizes that do not come from shapes. Raises ValueError naming the slot whose shape does not fit, and what is
    expected there.

    >>> bind("q: n h*d, k: m h*d -> y: n h*d", {"q": (5, 12), "k": (7, 12)}, {"h": 3})
    {'h': 3, 'n': 5, 'm': 7, 'd': 4}
    """
    sizes = dict(known or {})
    whole: Shape | None = None
    products: list[tuple[str, Axis, int]] = []
    for slot, axes in parse(line).axes.items():
        if slot not in shapes:
            continue
        shape = shapes[slot]
        if axes == ANY or axes[0].folds:
            whole = whole or shape
            if shape != whole:
                raise ValueError(f"{slot} has shape {list(shape)}, not {list(whole)}")
            if axes == ANY:
                continue
            shape = (math.prod(shape[:len(shape) - len(axes) + 1]), *shape[len(shape) - len(axes) + 1:])
        spare = len(shape) - len(axes)
        if spare < 0 or math.prod(shape[:spare]) != 1:
            raise ValueError(f"{slot} has shape {list(shape)}, not ({', '.join(map(str, axes))})")
        for axis, size in zip(axes, shape[spare:], strict=True):
            if axis.inner or (axis.index and axis.factor > 1):
                products.append((slot, axis, size))
            elif (wanted := sizes.setdefault(axis.index, size) if axis.index else axis.factor) != size:
                raise ValueError(f"{slot} has {size} elements along {axis}, not {wanted}")
    for slot, axis, size in products:
        unknown = [n for n in axis.indices if n not in sizes]
        if len(unknown) > 1:
            raise ValueError(f"{slot} has {size} elements along {axis}, and the size of {axis.index} is not known")
        for n in unknown:
            sizes[n] = size // (axis.factor * math.prod(sizes[i] for i in axis.indices if i != n))
        if axis.size(sizes) != size:
            raise ValueError(f"{slot} has {size} elements along {axis}, not {axis.size(sizes)}")
    return sizes
