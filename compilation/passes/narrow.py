"""Compute only the rows that are read: a row selection moves up through row-wise operations.

When only one token is read at the end (class-token pooling), everything row-wise behind the last attention is
computed for that token alone, and the attention block for its first query row alone; the gradients follow.
"""

from __future__ import annotations

from compilation.ops import REGISTRY
from compilation.passes.rewrite import emit_before, producers, use_counts
from compilation.program import Call, Program


def narrow_rows(program: Program) -> None:
    """Move every `take_row` as far up as it goes, in place."""
    while _move_one(program):
        pass


def _move_one(program: Program) -> bool:
    made, uses = producers(program), use_counts(program)
    for take in [c for c in program.calls if c.op == "take_row"]:
        source = take.inputs["x"]
        above = made.get(source)
        if above is None or above.op not in REGISTRY:
            continue
        if uses[source] == 1 and REGISTRY[above.op].rowwise:
            _through(program, take, above)
            return True
        if "q_rows" in REGISTRY[above.op].attrs and take.attrs["row"] == 0 and uses[source] == 1 \
                and above.attrs["q_rows"] > 1:
            above.attrs["q_rows"] = 1
            result = take.outputs["y"]
            above.outputs["y"] = result
            program.calls.remove(take)
            del program.tensors[source]
            return True
    return False


def _through(program: Program, take: Call, above: Call) -> None:
    """op(x) then take_row -> take_row of each row-wise input, then op on one row."""
    for slot in REGISTRY[above.op].rowwise:
        name = above.inputs[slot]
        above.inputs[slot] = emit_before(program, above, "take_row", {"x": name}, {"row": take.attrs["row"]},
                                         f"{name}.row", above.where)
    old, result = above.outputs["y"], take.outputs["y"]
    above.outputs["y"] = result
    del program.tensors[old]
    program.calls.remove(take)
    program.calls.remove(above)
    needed = set(above.inputs.values())
    last = max((i for i, c in enumerate(program.calls) if needed & set(c.outputs.values())), default=-1)
    program.calls.insert(last + 1, above)
