"""Compute only the rows that are read: a row selection moves up through row-wise operations.

When only one token is read at the end (class-token pooling), everything row-wise behind the last attention is
computed for that token alone, and the attention block for its first query row alone; the gradients follow.
"""

from __future__ import annotations

from dataclasses import replace

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
        if above is None or not program.has_op(above):
            continue
        if uses[source] == 1 and program.op(above).rowwise:
            _through(program, take, above)
            return True
        if "q_rows" in program.op(above).attrs and take.attrs["row"] == 0 and uses[source] == 1 \
                and above.attrs["q_rows"] > 1:
            program.replace_call(above, replace(above, attrs={**above.attrs, "q_rows": 1}, outputs=take.outputs))
            program.replace_call(take)
            del program.tensors[source]
            return True
    return False


def _through(program: Program, take: Call, above: Call) -> None:
    """op(x) then take_row -> take_row of each row-wise input, then op on one row."""
    rows = {}
    for slot in program.op(above).rowwise:
        name = above.inputs[slot]
        rows[slot] = emit_before(program, above, "take_row", {"x": name}, {"row": take.attrs["row"]}, f"{name}.row",
                                 above.where)
    del program.tensors[above.outputs["y"]]
    program.replace_call(take)
    program.replace_call(above)
    narrowed = replace(above, inputs={**above.inputs, **rows}, outputs=take.outputs)
    needed = set(narrowed.inputs.values())
    last = max((i for i, c in enumerate(program.calls) if needed & set(c.outputs.values())), default=-1)
    program.calls.insert(last + 1, narrowed)
