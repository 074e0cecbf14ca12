"""Drop what provably changes nothing: an addition to a layer whose parameters are all zero, frozen, and so will stay zero.

Operations declare from which all-zero inputs their result is all zero (`Op.vanishes`, and `TAIL` for those of the long
tail); a sigmoid of zeros is a half everywhere. A sum with zeros is its other operand, and so is a product with a factor
that an earlier one undoes (the output gate's 2 sigmoid(0)). The calls that made the factor or the zeros are then not
needed, nor are their parameters. What the update plan trains is kept, also where its gradient is zero.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Set

from compilation.program import STOP, VIEW, Call, Program, Role

EITHER, FIRST = (("in0",), ("in1",)), (("in0",),)
TAIL = {"relax:matmul": EITHER, "relax:multiply": EITHER, "relax:negative": FIRST,
        "relax:permute_dims": FIRST, "relax:reshape": FIRST, "relax:squeeze": FIRST, "relax:expand_dims": FIRST,
        "relax:strided_slice": FIRST}
SIGMOID, PRODUCT, FACTOR = ("relax:sigmoid", "sigmoid"), ("relax:multiply", "mul"), "mul_const"


def drop_zeros(program: Program, zero: Set[str], trained: Collection[str]) -> Program:
    """A forward Program without what changes nothing. zero: parameters that are all zero; trained: those of the plan."""
    known = dict.fromkeys(set(zero) - set(trained), 0.0)        # tensor -> the one value of all its elements
    for call in program.calls:
        if _vanishes(program, call, {n for n, v in known.items() if v == 0.0}):
            known |= dict.fromkeys(call.outputs.values(), 0.0)
        elif call.op in SIGMOID and known.get(next(iter(call.inputs.values()))) == 0.0:
            known |= dict.fromkeys(call.outputs.values(), 0.5)
    if not known.keys() & {t for c in program.calls for t in c.outputs.values()}:
        return program
    needed = set(trained) & program.tensors.keys()
    for outputs in [c.outputs for c in program.calls if c.op in ("add", *PRODUCT, VIEW)]:
        found = next((c for c in program.calls if c.outputs == outputs), None)  # its inputs may be others by now
        if found and (other := _same_as(program, found, known)):
            shorter = _bypass(program, found, other)
            if needed <= shorter.tensors.keys():
                program = shorter
    return program


def _vanishes(program: Program, call: Call, zero: Set[str]) -> bool:
    alternatives = (("x",),) if call.op == VIEW else program.op(call).vanishes if program.has_op(call) \
        else TAIL.get(call.op, ())
    return any(any(s in call.inputs for s in slots) and all(call.inputs.get(s) in {None, *zero} for s in slots)
               for slots in alternatives)


def _same_as(program: Program, call: Call, known: Mapping[str, float]) -> str | None:
    """The tensor that a call's result equals, element by element; None where there is none."""
    inputs, result = list(call.inputs.values()), program.tensors[call.outputs["y"]]
    if call.op == VIEW:
        source = inputs[0]
        return source if program.tensors[source].shape == result.shape and not call.attrs.get(STOP) else None
    for value, other in zip(inputs, reversed(inputs), strict=True) if len(inputs) == 2 else ():
        if call.op == "add" and known.get(value) == 0.0:
            return other
        if call.op in PRODUCT and known.get(value):
            made = next((c for c in program.calls if other in c.outputs.values()), None)
            if made is not None and made.op == FACTOR and made.attrs["value"] * known[value] == 1.0 \
                    and _may_be(program, made.inputs["x"], call.outputs["y"]):
                return made.inputs["x"]
    return None


def _may_be(program: Program, other: str, result: str) -> bool:
    """Whether the readers of a tensor may read another one, of as many elements, in its place."""
    shape, wanted = program.tensors[other].shape, program.tensors[result].shape
    only_seen = all(c.op == VIEW for c in program.calls if result in c.inputs.values()) and program.logits != result
    return shape == wanted or (only_seen and math.prod(shape) == math.prod(wanted))


def _bypass(program: Program, call: Call, other: str) -> Program:
    """The Program with `other` in the place of a call's result, and without the calls that nobody then needs."""
    result = call.outputs["y"]
    shorter = program.copy()
    shorter.calls = [c.renamed({result: other}) for c in program.calls if c.outputs != call.outputs]
    if shorter.logits == result:
        shorter.logits = other
    live, kept = {shorter.logits}, []
    for c in reversed(shorter.calls):
        if live & set(c.outputs.values()):
            kept.append(c)
            live |= set(c.inputs.values())
    shorter.calls = kept[::-1]
    shorter.tensors = {n: t for n, t in program.tensors.items() if n in live or t.role is Role.INPUT}
    shorter.constants = {n: v for n, v in program.constants.items() if n in live}
    return shorter
