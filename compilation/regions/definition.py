"""What definitions of regions have in common: names that depend on nothing but what is computed."""

from __future__ import annotations

from collections.abc import Mapping

from compilation.program import Program, Role, Tensor


def numbered(program: Program, names: Mapping[str, str]) -> Program:
    """The definition with its tensors in order, and named by the calls that make them, so that equal chains are equal.

    names: tensor -> its name as a slot of the region. Tensors of role INPUT and CONSTANT keep theirs unless it is given
    there; all other tensors that no call makes are left out.
    """
    final = {n: names.get(n, n) for n, t in program.tensors.items() if t.role in (Role.INPUT, Role.CONSTANT)}
    for i, c in enumerate(program.calls):
        for slot, t in c.outputs.items():
            final[t] = names.get(t) or "_".join([c.op, str(i), *([slot] if len(c.outputs) > 1 else [])])
    made = Program(program.name)
    for old, new in final.items():
        made.add(Tensor(new, program.tensors[old].type, program.tensors[old].role))
    made.calls = [c.renamed(final) for c in program.calls]
    return made
