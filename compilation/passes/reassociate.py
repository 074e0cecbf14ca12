"""One query asks little of its keys and values: it is projected to what they are made of, and not they to it.

Where scores are products of a single row q with rows k = u W^T, head by head, q_h k_h^T = (q_h W_h) u^T, and a mean of rows
of v = u W^T + b is (the mean of rows of u) W^T + b. So the heads become queries, all of one head, to the rows of u; a bias
of k falls out. This is done where k and v are read by nothing else and it takes less work.
"""

from __future__ import annotations

from typing import Any

from compilation.ops import REGISTRY
from compilation.passes.rewrite import emit_before, producers, site, use_counts
from compilation.program import Call, Program


def project_queries(program: Program) -> Program:
    """The Program with single queries projected instead of keys and values, wherever that is less work."""
    for call in list(program.calls):
        op = REGISTRY.get(call.op)
        if op is None or op.scored is None or op.mixed is None:
            continue
        made, uses = producers(program), use_counts(program)
        (query, key), value = (call.inputs[s] for s in op.scored), call.inputs[op.mixed]
        old = [made[t] for t in (key, value) if t in made and uses[t] == 1 and made[t].op in REGISTRY
               and REGISTRY[made[t].op].by_head]
        if len(old) == 2 and program.tensors[query].shape[0] == 1:
            other = _projected(program, call, *old)
            program = min(program, other, key=_macs)
    return program


def is_projected(program: Program, call: Call) -> bool:
    """Whether a call, or one that its region consists of, is there for a projected query."""
    made = {name for op in REGISTRY.values() for n in op.by_head or () for name in (n, REGISTRY[n].gradient)}
    calls = program.regions[call.op].definition.calls if call.op in program.regions else [call]
    return any(c.op in made for c in calls)


def _projected(program: Program, call: Call, keys: Call, values: Call) -> Program:
    """One attention to what keys and values are made of, in the place of that to them."""
    other, op, sizes = program.copy(), REGISTRY[call.op], REGISTRY[call.op].bind(site(program, call))
    transposed, _ = REGISTRY[keys.op].by_head or ("", "")
    _, straight = REGISTRY[values.op].by_head or ("", "")
    (q, k), v = op.scored or ("", ""), op.mixed or ""
    index = op.axes(q)[-1].index
    heads: dict[str, Any] = {op.sized[index]: sizes[index]}
    score = {"scale": call.attrs["scale"] or sizes[op.axes(q)[-1].inner] ** -0.5}   # of the features that there were
    inner = emit_before(other, call, transposed, {"x": call.inputs[q], "w": keys.inputs["w"]}, heads,
                        f"{call.inputs[q]}.projected", keys.where)
    mean = emit_before(other, call, call.op, {q: inner, k: keys.inputs["x"], v: values.inputs["x"]},
                       {**call.attrs, **dict.fromkeys(heads, 1), **score}, f"{call.inputs[q]}.mean", call.where)
    other.replace_call(call, Call(straight, {**values.inputs, "x": mean}, call.outputs, heads, where=values.where))
    for old in (keys, values):
        other.replace_call(old)
        del other.tensors[old.outputs["y"]]
    return other


def _macs(program: Program) -> int:
    return sum(program.op(c).macs(site(program, c)) for c in program.calls if program.has_op(c))
