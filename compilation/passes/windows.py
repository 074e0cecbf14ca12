"""A result that is read in windows of its columns alone is made in those windows.

The window moves up through what makes its columns independently, as the index line says: a packed linear becomes one
linear for each window (q, k, v; the two halves of a gated layer), its weight's rows and its bias pieces of the parameters
(`compilation.pieces`); a low-rank addition to it follows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from compilation.ops import REGISTRY
from compilation.ops.indices import ANY
from compilation.passes.rewrite import fresh, producers, use_counts
from compilation.pieces import cut
from compilation.program import Call, Program, Role

WINDOW = "columns"
Cuts = tuple[tuple[int, int], ...]      # (first column, columns) of each window, ascending


def split_windows(program: Program) -> None:
    """Make the windows of columns where they are read, as far up as it goes, in place."""
    done = False
    while not done:
        done = not any(_split(program, x) for x in dict.fromkeys(c.inputs["x"] for c in program.calls if c.op == WINDOW))


def _split(program: Program, tensor: str) -> bool:
    """Whether the tensor was replaced by its windows."""
    readers = [c for c in program.calls if tensor in c.inputs.values()]
    cuts = tuple(sorted({(c.attrs["start"], c.attrs["count"]) for c in readers if c.op == WINDOW}))
    ends = [0, *(first + count for first, count in cuts)]
    whole = [first for first, _ in cuts] == ends[:-1] and ends[-1] == program.tensors[tensor].shape[-1]
    made, uses = producers(program), use_counts(program)
    if not whole or uses[tensor] != len(readers) or any(c.op != WINDOW for c in readers) \
            or not _may_split(program, made, uses, tensor):
        return False
    _replace(program, made[tensor], readers, cuts)
    return True


def _sliced(call: Call) -> dict[str, int] | None:
    """Input slots of which a window of the result's columns needs a window, with the axis; None where it needs more."""
    op = REGISTRY.get(call.op)
    if op is None or op.line.outputs != ("y",) or op.line.axes["y"] == ANY:
        return None
    axis = op.line.axes["y"][-1]
    if axis.inner or axis.factor != 1 or axis.folds or not axis.index or axis.index in op.line.whole:
        return None
    found: dict[str, int] = {}
    for slot in call.inputs:
        along = [i for i, a in enumerate(op.line.axes[slot]) if axis.index in a.indices]
        if along and (len(along) > 1 or op.line.axes[slot][along[0]] != axis):
            return None
        if along:
            found[slot] = along[0]
    return found


def _may_split(program: Program, made: dict[str, Call], uses: Counter[str], tensor: str) -> bool:
    """Whether the call that makes a tensor can make windows of its columns, of inputs that only it reads."""
    call = made.get(tensor)
    sliced = _sliced(call) if call else None
    if call is None or not sliced:
        return False
    for slot, axis in sliced.items():
        name = call.inputs[slot]
        t = program.tensors[name]
        if t.role is Role.CONSTANT:         # rows of a matrix, elements of a vector
            if axis != 0 or name in program.constants or uses[name] != 1 or t.type.count // t.shape[-1] \
                    != (1 if len(REGISTRY[call.op].line.axes[slot]) == 1 else t.shape[0]):
                return False
        elif axis != len(REGISTRY[call.op].line.axes[slot]) - 1 or uses[name] != 1 \
                or not _may_split(program, made, uses, name):
            return False
    return True


def _replace(program: Program, call: Call, readers: list[Call], cuts: Cuts) -> None:
    """One call for each window in the place of a call; the readers' results are theirs."""
    windows: dict[str, list[str]] = {}
    before: list[Call] = []
    for slot in _sliced(call) or ():
        name = call.inputs[slot]
        if program.tensors[name].role is Role.CONSTANT:
            if len(REGISTRY[call.op].line.axes[slot]) == 1:
                program.put_shape(name, (program.tensors[name].type.count,))
            windows[slot] = cut(program, name, cuts)
            continue
        windows[slot] = []
        for first, count in cuts:
            t = program.tensors[name]
            part = replace(t, name=fresh(program, f"{name}[{first}:{first + count}]"),
                           type=t.type.shaped((*t.shape[:-1], count)))
            windows[slot].append(program.add(part).name)
            before.append(Call(WINDOW, {"x": name}, {"y": part.name}, {"start": first, "count": count}, where=call.where))
    made: list[Call] = []
    renamed: dict[str, str] = {}
    for i, (first, _) in enumerate(cuts):
        result, *more = [c.outputs["y"] for c in readers if c.attrs["start"] == first]
        renamed |= dict.fromkeys(more, result)
        inputs = {s: windows[s][i] if s in windows else t for s, t in call.inputs.items()}
        made.append(replace(call, inputs=inputs, outputs={"y": result}))
    program.replace_call(call, *before, *made)
    program.calls = [c.renamed(renamed) for c in program.calls if all(c is not r for r in readers)]
    for name in (call.outputs["y"], *renamed):
        del program.tensors[name]
