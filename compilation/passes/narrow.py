"""Compute only the rows that are read: a row selection moves up through whatever makes each row from one of its own.

When only one token is read at the end (class-token pooling), everything behind the last attention is computed for that
token alone, and so are the queries of that attention; the gradients follow.
"""

from __future__ import annotations

from dataclasses import replace

from compilation.ops import REGISTRY, Op
from compilation.passes.rewrite import emit_before, producers, use_counts
from compilation.program import Call, Program

TAKE = "take_row"
Rows = dict[tuple[str, int], str]       # (tensor, row) -> the tensor that is this row of it


def narrow_rows(program: Program) -> None:
    """Move every `take_row` as far up as it goes, in place."""
    rows: Rows = {}
    for c in program.calls:
        if c.op == TAKE:
            rows.setdefault((c.inputs["x"], c.attrs["row"]), c.outputs["y"])
    while _move_one(program, rows, True) or _move_one(program, rows, False):
        pass


def _move_one(program: Program, rows: Rows, sole: bool) -> bool:
    """Whether there was one to move.

    sole: through a call whose result nothing else reads; that call then makes one row. Else through one that stays as it is,
    too, and whose one row is made a second time: only where the rows that this needs are there already, so that afterwards
    no row of its result has to be picked.
    """
    made, uses = producers(program), use_counts(program)
    for take in [c for c in program.calls if c.op == TAKE]:
        source, row = take.inputs["x"], take.attrs["row"]
        above = made.get(source)
        if above is None or above.op not in REGISTRY or list(above.outputs.values()) != [source] \
                or (uses[source] == 1) != sole:
            continue
        slots = _by_row(REGISTRY[above.op], above)
        if slots and (sole or all((above.inputs[s], row) in rows for s in slots)):
            _through(program, rows, take, above, slots, sole)
            return True
    return False


def _by_row(op: Op, call: Call) -> list[str]:
    """The input slots of which row i is read for row i of the result, and no other; none if other rows are, too."""
    if not op.leaf:
        return []
    slot, = call.outputs
    axes = op.line.axes
    first = axes[slot][0]
    if not first.index or first.inner or first.factor > 1 or first.index in op.line.whole:
        return []
    read = [s for s in call.inputs if first.index in op.line.indices((s,))]
    return read if all(axes[s][0] == first and not any(first.index in a.indices for a in axes[s][1:]) for s in read) else []


def _through(program: Program, rows: Rows, take: Call, above: Call, slots: list[str], sole: bool) -> None:
    """op(x) then take_row -> take_row of each input with such rows, then op on one row."""
    inputs = {**above.inputs, **{s: _row(program, rows, above.inputs[s], take.attrs["row"], above.where) for s in slots}}
    program.replace_call(take)
    if sole:
        program.replace_call(above)
        del program.tensors[take.inputs["x"]]
    slot, = above.outputs
    narrowed = replace(above, inputs=inputs, outputs={slot: take.outputs["y"]})
    program.calls.insert(_behind(program, set(inputs.values())), narrowed)


def _row(program: Program, rows: Rows, tensor: str, row: int, where: str) -> str:
    """The row of a tensor, picked (where it is not made) as soon as the tensor is there, and once."""
    name = rows.get((tensor, row))
    if name is None:
        at = program.calls[_behind(program, {tensor})]
        name = emit_before(program, at, TAKE, {"x": tensor}, {"row": row}, f"{tensor}.row", where)
        rows[tensor, row] = name
    made = producers(program)[name]
    if made.op == TAKE:
        program.replace_call(made)
        program.calls.insert(_behind(program, {tensor}), made)
    return name


def _behind(program: Program, tensors: set[str]) -> int:
    """The place behind the calls that make these tensors."""
    return max((i for i, c in enumerate(program.calls) if tensors & set(c.outputs.values())), default=-1) + 1
