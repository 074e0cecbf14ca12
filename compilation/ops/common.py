"""What operation definitions share: slot shorthands, panel arithmetic, part sizes, the choice of schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from compilation.ops.base import Op, Shape, Site, Slot
from compilation.target import STAGE, TILES
from compilation.types import F32, INDEX, Element

FLAG, COUNT = (0, 1), range(1, 2**31)       # legal values of switches and of block sizes


def tile(name: str, optional: bool = False) -> Slot:
    return Slot(name, "tile", optional)


def tensor(name: str, optional: bool = False, element: Element = F32) -> Slot:
    return Slot(name, "tensor", optional, element)


def vector(name: str, optional: bool = False) -> Slot:
    return Slot(name, "vector", optional)


def matrix(name: str, optional: bool = False) -> Slot:
    return Slot(name, "matrix", optional)


def index_list(name: str, of: str) -> Slot:
    """Columns of the slot `of`."""
    return Slot(name, "index", False, INDEX, of)


def width(left: int, limit: int) -> int:
    """vt_width: the largest power of two within both; limit is one itself."""
    while limit > left:
        limit //= 2
    return limit


def panels(n: int, rows: int) -> int:
    """How many panels n tokens are taken in."""
    count = 0
    while n > 0:
        n -= width(n, rows)
        count += 1
    return count


def part_shape(site: Site, slot: str) -> Shape:
    """Shape of the trained part of a matrix slot: the shape of its gradient."""
    return site.part(slot)


def by_columns(site: Site, slot: str) -> bool:
    """Whether only some columns are trained (then the part has a column list)."""
    return slot in site.parts and site.parts[slot][0] == "cols"


def part_size(site: Site, slot: str) -> int:
    return math.prod(part_shape(site, slot))


def check_eps(eps: float) -> None:
    if eps < 0:
        raise ValueError(f"eps is {eps}, below 0")


def check_pairs(site: Site, *pairs: tuple[str, str]) -> None:
    """Optional slots that are there together or not at all."""
    for a, b in pairs:
        if site.has(a) != site.has(b):
            raise ValueError(f"{a} and {b} belong together: {b if site.has(a) else a} is absent")


def stage_width(columns: int) -> int:
    """Columns at a time in which a weight gradient with that many packed ones makes its operand again."""
    return width(columns, STAGE)


def blocks(n: int, size: int) -> int:
    return -(-n // size)


def grid(**values: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """All combinations."""
    names = list(values)

    def walk(i: int, chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if i == len(names):
            yield dict(chosen)
            return
        for v in values[names[i]]:
            yield from walk(i + 1, {**chosen, names[i]: v})

    return walk(0, {})


def fastest_first(op: Op, site: Site, settings: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Settings by estimated time, those dropped that are neither faster nor smaller than another.

    The estimate is multiply-adds times the price of narrow panels, which reuse a weight fewer times, and of short
    chunks and blocks, whose sums are loaded and stored more often.
    """
    rated = []
    for s in settings:
        at = Site(site.shapes, {**site.attrs, **s}, site.wants, site.parts)
        price = 1 + 3 / s.get("rows", 16)
        price *= (1 + 3 / s.get("chunk", 1024)) * (1 + 0.3 / s.get("gram_block", 1024))
        rated.append((op.macs(at) * price, op.scratch(at), s))
    rated.sort(key=lambda r: (r[0], r[1]))
    least: int | None = None
    for _, scratch, s in rated:
        if least is None or scratch < least:
            least = scratch
            yield s


def row_settings(n: int) -> list[int]:
    """Panel widths worth trying for n tokens."""
    return [r for r in TILES if r <= max(1, n)]
