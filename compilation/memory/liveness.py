"""When each arena tensor lives, and the lower bound that follows."""

from __future__ import annotations

from compilation.program import ARENA_ROLES, Program, Role

ALIGNMENT = 4  # bytes; every element type of today needs no more, on every core


def lifetimes(program: Program) -> dict[str, tuple[int, int]]:
    """Storage (root of an alias chain) -> (first call, one past the last call) of its life.

    INPUT tensors live from the start of the step; a result from the call that makes it; everything until its
    last reader. Tensors outside the arena are left out.
    """
    life: dict[str, tuple[int, int]] = {}
    roots = {name: root for name, t in program.tensors.items() if t.role in ARENA_ROLES
             and program.tensors[root := program.storage(name)].role in ARENA_ROLES}

    def touch(name: str, at: int) -> None:
        root = roots.get(name)
        if root is None:
            return
        first = 0 if program.tensors[root].role is Role.INPUT else at
        begin, end = life.get(root, (first, at + 1))
        life[root] = (min(begin, first), max(end, at + 1))

    for i, call in enumerate(program.calls):
        for name in (*call.inputs.values(), *call.outputs.values()):
            touch(name, i)
        if call.scratch:
            touch(call.scratch, i)
    return life


def padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def live_bytes(program: Program, life: dict[str, tuple[int, int]] | None = None) -> list[int]:
    """Bytes of arena tensors live during each call."""
    life = lifetimes(program) if life is None else life
    change = [0] * (len(program.calls) + 1)
    for name, (begin, end) in life.items():
        size = padded(program.tensors[name].bytes)
        change[begin] += size
        change[end] -= size
    total, out = 0, []
    for delta in change[:-1]:
        total += delta
        out.append(total)
    return out


def lower_bound(program: Program) -> int:
    """No arena can be smaller than the most bytes that live at once."""
    return max(live_bytes(program), default=0)
