"""The index line of an operation, such as ``x: n c, w: o c, b: o``: what the axes of its inputs are, and must agree on.

An axis is an index (``n``), a number (``1``) or a multiple of an index (``3*d``). ``*`` stands for any shape, the same
for all slots marked so. Leading axes of one element do not count: a bias may be (1, 1, c).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

Axes = tuple[str, ...]


@cache
def parse(line: str) -> dict[str, Axes]:
    """Slot -> its axes."""
    slots = (part.split(":") for part in line.split(",") if part.strip())
    return {name.strip(): tuple(axes.split()) for name, axes in slots}


def bind(line: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Index -> size. Raises ValueError naming the slot whose shape does not fit, and what is expected there."""
    sizes: dict[str, int] = {}
    whole: tuple[int, ...] | None = None
    multiples: list[tuple[str, str, int]] = []
    for slot, axes in parse(line).items():
        if slot not in shapes:
            continue
        shape = shapes[slot]
        if axes == ("*",):
            whole = whole or shape
            if shape != whole:
                raise ValueError(f"{slot} has shape {list(shape)}, not {list(whole)}")
            continue
        spare = len(shape) - len(axes)
        if spare < 0 or math.prod(shape[:spare]) != 1:
            raise ValueError(f"{slot} has shape {list(shape)}, not ({', '.join(axes)})")
        for axis, size in zip(axes, shape[spare:], strict=True):
            if "*" in axis:
                multiples.append((slot, axis, size))
            elif sizes.setdefault(axis, int(axis) if axis.isdigit() else size) != size:
                raise ValueError(f"{slot} has {size} elements along {axis}, not {sizes[axis]}")
    for slot, axis, size in multiples:
        factor, index = axis.split("*")
        if sizes.setdefault(index, size // int(factor)) * int(factor) != size:
            raise ValueError(f"{slot} has {size} elements along {axis}, not {int(factor) * sizes[index]}")
    return sizes
