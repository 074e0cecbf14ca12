"""The judge of finished Programs: the same for one that was just compiled and for one that was read from a file."""

from __future__ import annotations

from compilation.errors import VerificationError
from compilation.memory.liveness import padded
from compilation.memory.validate import check_program_memory
from compilation.passes.rewrite import shape_of, site
from compilation.program import VIEW, Program, Role, Tensor
from compilation.regions.judge import judge as judge_nest
from compilation.regions.nest import NoNestError
from compilation.types import F32, LABEL, PIXELS, Element
from compilation.verify import RELAX, verify


def judge(program: Program, after: str = "") -> None:
    """Everything that `verify` checks, and that the Program is complete: every call can be emitted, has the scratch it
    needs, the interface is whole, the loops of every region compute what it stands for, and the memory plan holds.

    Raises VerificationError or PlacementError.
    """
    verify(program, after)
    prefix = f"after {after}: " if after else ""
    _check_interface(program, prefix)
    _check_nests(program, prefix)
    _check_scratch(program, prefix)
    check_program_memory(program, program.arena_bytes)


def _check_interface(program: Program, prefix: str) -> None:
    """Image and label go in, logits and loss come out, and the prediction is a step up to the logits."""
    def named(key: str, role: Role, *elements: Element) -> Tensor:
        t = program.tensors.get(getattr(program, key))
        if t is None:
            raise VerificationError(f"{prefix}{key} is the unknown tensor {getattr(program, key)!r}")
        if t.role is not role or t.alias or t.element not in elements:
            raise VerificationError(f"{prefix}{key} is {t.name}, which is {t.role.value} {t.element}: expected "
                                    f"{role.value} {' or '.join(map(str, elements))} with storage of its own")
        return t

    known = [named("image", Role.INPUT, *PIXELS), named("label", Role.INPUT, LABEL),
             named("logits", Role.OUTPUT, F32), named("loss", Role.OUTPUT, F32)]
    for t in program.tensors.values():
        if t.role in (Role.INPUT, Role.OUTPUT) and t not in known:
            raise VerificationError(f"{prefix}{t.name} is {t.role.value}, but the Program does not say what it is for")
    at = next((i for i, c in enumerate(program.calls) if program.loss in c.outputs.values()), -1)
    if at != program.predict_calls or at < 0:
        raise VerificationError(f"{prefix}a prediction is the first {program.predict_calls} calls, but the loss is made by "
                                f"{f'call {at}' if at >= 0 else 'none'}")
    loss = program.calls[at]
    if dict(loss.inputs) != {"logits": program.logits, "label": program.label}:
        raise VerificationError(f"{prefix}call {at} {loss.op} makes the loss of {', '.join(loss.inputs.values())}, "
                                f"not of {program.logits} and {program.label}")
    for i, c in enumerate(program.calls[:at]):
        early = [t for t in c.outputs.values() if program.tensors[t].role is Role.GRADIENT]
        if c.updates or early:
            raise VerificationError(f"{prefix}call {i} {c.op} makes gradients or updates before the loss is known")


def _check_scratch(program: Program, prefix: str) -> None:
    """Each call has exactly the scratch it needs, to itself."""
    users: dict[str, int] = {}
    for i, c in enumerate(program.calls):
        at = f"{prefix}call {i} {c.op} ({c.where or 'top level'}): "
        if c.op.startswith(RELAX):
            raise VerificationError(f"{at}it was never lowered")
        if c.op == VIEW and program.tensors[c.outputs["y"]].alias != c.inputs["x"]:
            raise VerificationError(f"{at}{c.outputs['y']} does not share the storage of {c.inputs['x']}")
        need = int(c.attrs.get("work_bytes", 0))
        if program.has_op(c):
            need = program.op(c).scratch(site(program, c))
        t = program.tensors.get(c.scratch or "")
        if c.scratch is not None and (t is None or t.role is not Role.SCRATCH or t.alias or c.scratch in users):
            raise VerificationError(f"{at}{c.scratch} is no scratch of its own")
        have = t.bytes if t else 0
        if have != padded(need):
            raise VerificationError(f"{at}it needs {padded(need)} bytes of scratch and has {have}")
        if c.scratch is not None:
            users[c.scratch] = i


def _check_nests(program: Program, prefix: str) -> None:
    """The loops of every region, as its call has them: what is made in an input's place, what is trained and updated."""
    judged: set[object] = set()
    for i, c in enumerate(program.calls):
        region = program.regions.get(c.op)
        if region is None:
            continue
        where = site(program, c)
        alias = {s: program.tensors[t].alias for s, t in c.outputs.items()}
        over = {s: into for s, a in alias.items() for into, t in c.inputs.items() if t == a}
        key = (c.op, where.wants, where.updates, *(tuple(sorted(d.items())) for d in (where.parts, c.attrs, over)))
        if key in judged:
            continue
        judged.add(key)
        made = region.infer(where)
        given = {**where.shapes, **{s: shape_of(program, t) for s, t in c.updates.items()}}
        try:
            judge_nest(region.nest(where), given, {s: made[s].shape for s in c.outputs}, where.parts, c.updates, over)
        except (NoNestError, ValueError, VerificationError) as error:
            at = f"{prefix}call {i} {c.op} ({c.where or 'top level'})"
            raise VerificationError(f"{at}, scheduled {c.attrs.get('schedule')!r}: {error}") from None
