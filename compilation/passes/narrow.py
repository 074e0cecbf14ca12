"""Compute only the rows that are read: a row selection moves up through whatever makes each row from one of its own.

When only one token is read at the end (class-token pooling), everything behind the last attention is computed for that
token alone, and so are the queries of that attention; the gradients follow.
"""

from __future__ import annotations

from dataclasses import replace

from compilation.ops.base import Op
from compilation.passes.rewrite import emit_before, producers, site, use_counts
from compilation.program import Call, Program
from compilation.regions.statements import is_cheap

TAKE = "take_row"


def narrow_rows(program: Program) -> None:
    """Move every `take_row` as far up as it goes, in place."""
    while _move_one(program):
        pass


def _move_one(program: Program) -> bool:
    made, uses = producers(program), use_counts(program)
    for take in [c for c in program.calls if c.op == TAKE]:
        source = take.inputs["x"]
        above = made.get(source)
        if above is None or not program.has_op(above) or list(above.outputs.values()) != [source]:
            continue
        if "q_rows" in above.attrs:         # of the streamed attention, which is no region yet
            if take.attrs["row"] == 0 and uses[source] == 1 and above.attrs["q_rows"] > 1:
                program.replace_call(above, replace(above, attrs={**above.attrs, "q_rows": 1}, outputs=take.outputs))
                program.replace_call(take)
                del program.tensors[source]
                return True
            continue
        slots = _by_row(program.op(above), above)
        sole = uses[source] == 1
        there = is_cheap(program.op(above), site(program, above)) and all(
            _taken(program, above.inputs[s], take) for s in slots)
        if slots and (sole or there):
            _through(program, take, above, slots, sole)
            return True
    return False


def _by_row(op: Op, call: Call) -> list[str]:
    """The input slots of which row i is read for row i of the result, and no other; none if other rows are, too."""
    if not op.leaf:
        return list(op.rowwise)
    slot, = call.outputs
    axes = op.line.axes
    first = axes[slot][0]
    if not first.index or first.inner or first.factor > 1 or first.index in op.line.whole:
        return []
    read = [s for s in call.inputs if first.index in op.line.indices((s,))]
    return read if all(axes[s][0] == first and not any(first.index in a.indices for a in axes[s][1:]) for s in read) else []


def _through(program: Program, take: Call, above: Call, slots: list[str], sole: bool) -> None:
    """op(x) then take_row -> take_row of each input with such rows, then op on one row.

    sole: nothing else reads what `above` makes; else it stays, and its one row is made a second time. (That is done only
    where it is cheap and the rows that it needs are there already, so that there is one row less to keep.)
    """
    rows = {s: _row(program, above.inputs[s], take) for s in slots}
    program.replace_call(take)
    if sole:
        program.replace_call(above)
        del program.tensors[take.inputs["x"]]
    slot, = above.outputs
    narrowed = replace(above, inputs={**above.inputs, **rows}, outputs={slot: take.outputs["y"]})
    program.calls.insert(_behind(program, set(narrowed.inputs.values())), narrowed)


def _taken(program: Program, tensor: str, take: Call) -> Call | None:
    """Another call that takes the same row of a tensor as `take` does of its own."""
    return next((c for c in program.calls if c.op == TAKE and c is not take and c.inputs["x"] == tensor
                 and c.attrs == take.attrs), None)


def _row(program: Program, tensor: str, take: Call) -> str:
    """The row of another tensor that `take` asks for, made as soon as the tensor is there, and once."""
    found = _taken(program, tensor, take)
    if found:
        program.replace_call(found)
        program.calls.insert(_behind(program, {tensor}), found)
        return found.outputs["y"]
    at = program.calls[_behind(program, {tensor})]
    return emit_before(program, at, TAKE, {"x": tensor}, dict(take.attrs), f"{tensor}.row", take.where)


def _behind(program: Program, tensors: set[str]) -> int:
    """The place behind the calls that make these tensors."""
    return max((i for i, c in enumerate(program.calls) if tensors & set(c.outputs.values())), default=-1) + 1
