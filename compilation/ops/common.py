"""What operation definitions share: slot shorthands, panel widths, part sizes."""

from __future__ import annotations

import math

from compilation.ops.base import Site, Slot
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


def by_columns(site: Site, slot: str) -> bool:
    """Whether only some columns are trained (then the part has a column list)."""
    return slot in site.parts and site.parts[slot][0] == "cols"


def part_size(site: Site, slot: str) -> int:
    return math.prod(site.part(slot))


def check_eps(eps: float) -> None:
    if eps < 0:
        raise ValueError(f"eps is {eps}, below 0")


def stage_width(columns: int) -> int:
    """Columns at a time in which a weight gradient with that many packed ones makes its operand again."""
    return width(columns, STAGE)


def row_settings(n: int) -> list[int]:
    """Panel widths worth trying for n tokens."""
    return [r for r in TILES if r <= max(1, n)]
