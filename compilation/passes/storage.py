"""Storage passes: results in place, dead inputs reused, kernel settings and their scratch."""

from __future__ import annotations

from dataclasses import replace

from compilation.memory.liveness import lifetimes, live_bytes, padded
from compilation.ops.base import Setting
from compilation.passes.rewrite import fresh, site
from compilation.program import VIEW, Call, Program, Role, Tensor
from compilation.target import Target
from compilation.types import BYTES, Type


def share_storage(program: Program) -> None:
    """Let a result take over the storage of an input that dies with the call, where the operation allows it."""
    last: dict[str, int] = {}
    for i, c in enumerate(program.calls):
        for t in (*c.inputs.values(), *c.outputs.values()):
            if t in program.tensors:
                last[t] = i
    end: dict[str, int] = {}                     # storage root -> last call that touches any of its tensors
    for i, c in enumerate(program.calls):
        pairs = {"y": "x"} if c.op == VIEW else {}
        if program.has_op(c):
            pairs = program.op(c).may_alias(site(program, c))
        for out, into in pairs.items():
            if out not in c.outputs or into not in c.inputs:
                continue
            result, source = program.tensors[c.outputs[out]], program.tensors[c.inputs[into]]
            root = program.tensors[program.storage(source.name)]
            sole = sum(program.storage(t) == root.name for t in c.inputs.values() if t in program.tensors) == 1
            dies = max(end.get(root.name, -1), last[source.name]) == i
            same = result.bytes == root.bytes and result.element == root.element
            movable = root.role in (Role.ACTIVATION, Role.GRADIENT) and result.role in (Role.ACTIVATION, Role.GRADIENT)
            if c.op == VIEW or (sole and dies and same and movable):
                program.put(result.name, alias=source.name)
                end[root.name] = max(end.get(root.name, -1), last[source.name], last[result.name])


def kernel_settings(program: Program, call: Call, target: Target) -> list[Setting]:
    """The schedule settings of a call, fastest first, with the bytes of scratch as they are placed.

    Calls that look alike to their operation share the answer.
    """
    op, where = program.op(call), site(program, call)
    fixed = sorted((k, v) for k, v in where.attrs.items() if k not in op.schedule)
    key = (op.name, target.name, *map(str, (sorted(where.shapes.items()), fixed, sorted(where.wants), sorted(where.updates),
                               sorted(where.parts.items()))))
    if key not in _SETTINGS:
        _SETTINGS[key] = [s._replace(scratch=padded(s.scratch)) for s in op.settings(where, target)]
    return _SETTINGS[key]


_SETTINGS: dict[tuple[str, ...], list[Setting]] = {}


def tune(program: Program, capacity: int | None, target: Target) -> int:
    """Give every call the fastest settings whose scratch fits beside what lives during it, and its scratch tensor.

    capacity: bytes of the arena; None for the fastest settings whatever they need. Calls that cannot fit get the
    settings with the least scratch. Returns the resulting peak of live bytes.
    """
    live = live_bytes(program, lifetimes(program))
    for i, call in enumerate(program.calls):
        if program.has_op(call):
            options = kernel_settings(program, call, target)
        else:           # the long tail has no settings, only its work memory
            options = [Setting({}, padded(int(call.attrs["work_bytes"])), 0, 0)] if call.attrs.get("work_bytes") else []
        if not options:
            continue
        room = None if capacity is None else capacity - live[i]
        fitting = [o for o in options if room is None or o.scratch <= room]
        settings, size, _, _ = fitting[0] if fitting else min(options, key=lambda o: o.scratch)
        scratch = None
        if size:
            buffer = Tensor(fresh(program, f"scratch.{i}"), Type((size,), BYTES), Role.SCRATCH, call.where)
            scratch = program.add(buffer).name
            live[i] += size
        program.calls[i] = replace(call, attrs={**call.attrs, **settings}, scratch=scratch)
    return max(live, default=0)
