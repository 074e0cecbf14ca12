"""Calls whose kernel cannot take whole row-major tensors become regions of one call, which loop over tiles that it can.

What a kernel cannot take its leaf declares: panels (`Op.layout`; a single row is both) and the most elements of an index
in one call (`Op.limit`).
"""

from __future__ import annotations

from dataclasses import replace

from compilation.ops import REGISTRY, Op, Site
from compilation.passes.rewrite import site
from compilation.program import Call, Program, Role, Tensor
from compilation.regions.loops import PANEL
from compilation.regions.region import Region
from compilation.types import Type

PARAMETERS = (Role.CONSTANT, Role.TRAINED)


def wrap_leaves(program: Program) -> None:
    """Put regions in the place of such calls."""
    for i, call in enumerate(program.calls):
        if call.op not in REGISTRY or not REGISTRY[call.op].leaf:
            continue
        op, where = REGISTRY[call.op], site(program, call)
        if not _takes_whole(op, where):
            region = _region(program, op, call, where)
            region = program.regions.setdefault(region.name, region)
            program.calls[i] = replace(call, op=region.name, attrs=region.defaults())


def _takes_whole(op: Op, where: Site) -> bool:
    """Whether the kernel takes the whole of every operand, row by row."""
    shapes = {**where.shapes, **{s: t.shape for s, t in op.infer(where).items() if s in where.wants}}
    sizes = op.bind(where)
    panels = [shapes[s] for s, layout in op.layout.items() if layout == PANEL and s in shapes]
    return all(min(s) == 1 for s in panels) and all(sizes[i] <= most for i, most in op.limit.items())


def _region(program: Program, op: Op, call: Call, where: Site) -> Region:
    """The call alone, slots and results named as its own. (Matrices whole, whatever is trained of them.)"""
    whole = op.infer(replace(where, parts={}))
    work = Program("region")
    for slot in op.inputs:
        if slot.name in call.inputs:
            t = program.tensors.get(call.inputs[slot.name])
            fixed = slot.parameter or (t is not None and t.role in PARAMETERS)
            made = Type(where.shapes[slot.name], slot.element)
            work.add(Tensor(slot.name, made, Role.CONSTANT if fixed else Role.INPUT))
    results = [s.name for s in op.outputs if s.name in where.wants]
    for r in results:
        work.add(Tensor(r, whole[r], Role.GRADIENT if r.startswith("d_") else Role.ACTIVATION))
    work.calls = [Call(op.name, {s: s for s in call.inputs}, {r: r for r in results}, call.attrs)]
    return Region(work, tuple(results))
