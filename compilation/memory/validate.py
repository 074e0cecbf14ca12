"""The judge of memory plans: knows nothing of how they were made."""

from __future__ import annotations

from compilation.errors import PlacementError
from compilation.memory.liveness import ALIGNMENT, lifetimes
from compilation.memory.placement import Item
from compilation.program import Program


def check_placement(items: list[Item], offsets: dict[str, int], capacity: int, alignment: int = 1) -> None:
    """Every item inside [0, capacity), aligned, and no two that live at once overlap. Raises PlacementError."""
    for i in items:
        at = offsets.get(i.id)
        if at is None or at < 0 or at + i.size > capacity or at % alignment:
            raise PlacementError(f"{i.id} at {at} with {i.size} bytes is outside {capacity} bytes "
                                 f"or not aligned to {alignment}")
    ordered = sorted((i for i in items if i.size), key=lambda i: offsets[i.id])
    for n, a in enumerate(ordered):
        for b in ordered[n + 1:]:
            if offsets[b.id] >= offsets[a.id] + a.size:
                break
            if a.lower < b.upper and b.lower < a.upper:
                raise PlacementError(f"{a.id} and {b.id} overlap in memory while both live")


def check_program_memory(program: Program, capacity: int) -> None:
    """The arena of a placed Program: what is used has a place, and nothing else has. Raises PlacementError."""
    life = lifetimes(program)
    for t in program.tensors.values():
        root = program.tensors[program.storage(t.name)]
        if t.offset is not None and (root.name not in life or root.offset != t.offset):
            raise PlacementError(f"{t.name} ({t.role.value}) is at {t.offset}, but its storage, {root.name}, is "
                                 f"{'elsewhere' if root.name in life else 'not in use in the arena'}")
    items = [Item(n, *life[n], program.tensors[n].bytes) for n in life]
    offsets = {n: at for n in life if (at := program.tensors[n].offset) is not None}
    check_placement(items, offsets, capacity, ALIGNMENT)
