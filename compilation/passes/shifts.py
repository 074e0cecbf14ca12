"""Parameters that the loss does not feel: what only adds one vector to all rows of what does not depend on such a shift.

Softmax over keys stays as it is when one vector is added to every key, so the bias of a projection to keys has gradient
zero, exactly, wherever all that lies between passes the shift on (`Op.shifts`). Such a parameter is a constant, whatever
the update plan says; PyTorch's gradient of it is rounding noise, which moves it by some 1e-9 of what others move.
"""

from __future__ import annotations

from collections.abc import Iterable

from compilation.ops import REGISTRY
from compilation.program import Program, Role


def unfelt(program: Program) -> frozenset[str]:
    """The vectors among the parameters whose gradient is zero whatever the image. program: forward, not yet in regions."""
    felt = {program.logits}         # tensors for which one vector added to all rows makes a difference
    vectors: set[str] = set()
    for c in reversed(program.calls):
        op = REGISTRY.get(c.op)
        passes = op.shifts if op and not felt & set(c.outputs.values()) else ()
        felt |= {t for s, t in c.inputs.items() if op is None or s not in (*op.shift_free, *passes)}
        vectors |= {t for s, t in c.inputs.items() if op and op.slots[s].kind == "vector"}
    return frozenset(n for n in vectors - felt if program.tensors[n].role is Role.CONSTANT and n not in program.constants)


def drop_unread(program: Program, names: Iterable[str]) -> None:
    """Of these parameters, take out those that no call reads, in place."""
    read = {t for c in program.calls for t in c.inputs.values()}
    for name in set(names) - read:
        del program.tensors[name]
