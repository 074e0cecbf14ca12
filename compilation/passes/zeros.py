"""Drop what is provably zero: an addition to a layer whose matrix is all zero, frozen, and so will stay zero.

Operations declare from which all-zero inputs their result is all zero (`Op.vanishes`). Adding such a result changes
nothing, so the sum is its other operand, and the calls that made the zero are not needed, nor are their parameters.
What the update plan trains is kept, also where its gradient is zero.
"""

from __future__ import annotations

from collections.abc import Collection, Set

from compilation.ops import REGISTRY
from compilation.program import VIEW, Call, Program, Role


def drop_zeros(program: Program, zero: Set[str], trained: Collection[str]) -> Program:
    """A forward Program without what is zero. zero: parameters that are all zero; trained: those of the update plan."""
    known = set(zero) - set(trained)
    for call in program.calls:
        if _vanishes(call, known):
            known |= set(call.outputs.values())
    needed = set(trained) & program.tensors.keys()
    for call in [c for c in program.calls if c.op == "add" and known & set(c.inputs.values())]:
        shorter = _bypass(program, call, known)
        if needed <= shorter.tensors.keys():
            program = shorter
    return program


def _vanishes(call: Call, zero: Set[str]) -> bool:
    alternatives = (("x",),) if call.op == VIEW else REGISTRY[call.op].vanishes if call.op in REGISTRY else ()
    return any(all(call.inputs.get(s) in {None, *zero} for s in slots) for slots in alternatives)


def _bypass(program: Program, call: Call, zero: Set[str]) -> Program:
    """The Program with the other operand in the place of a sum with zero, and without the calls that nobody then needs."""
    a, b = call.inputs["a"], call.inputs["b"]
    result, other = call.outputs["y"], b if a in zero else a
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
