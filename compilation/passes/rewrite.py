"""Small helpers that the passes share: who makes a tensor, who reads it, what a call looks like to its operation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from compilation.ops import REGISTRY
from compilation.ops.base import Site
from compilation.program import VIEW, Call, Program, Role, Tensor, Weight


def producers(program: Program) -> dict[str, Call]:
    """Tensor -> the call that makes it."""
    return {t: c for c in program.calls for t in c.outputs.values()}


def parameter_views(program: Program) -> dict[str, str]:
    """Tensor that is a parameter under another shape (a view, or a view of one) -> the parameter."""
    views: dict[str, str] = {}
    for c in program.calls:
        if c.op == VIEW:
            source = views.get(c.inputs["x"], c.inputs["x"])
            t = program.tensors.get(source)
            if t is not None and t.role in (Role.CONSTANT, Role.TRAINED):
                views[c.outputs["y"]] = source
    return views


def use_counts(program: Program) -> Counter[str]:
    """How many call slots read each tensor; the logits count as read once more by the user."""
    counts = Counter(t for c in program.calls for t in c.inputs.values())
    if program.logits:
        counts[program.logits] += 1
    return counts


def fresh(program: Program, stem: str) -> str:
    """A tensor name that is not taken."""
    name, n = stem, 1
    while name in program.tensors:
        n += 1
        name = f"{stem}.{n}"
    return name


def shape_of(program: Program, name: str) -> tuple[int, ...]:
    weight = program.weights.get(name)
    return weight.shape if weight else program.tensors[name].shape


def site(program: Program, call: Call) -> Site:
    """What the operation may know of this call."""
    op = REGISTRY[call.op]
    known = {s.name for s in op.inputs}
    shapes = {s: shape_of(program, t) for s, t in call.inputs.items() if s in known}
    parts = {}
    for s, t in call.inputs.items():
        w = program.weights.get(t)
        if w and w.trained:
            axis = w.axis or "rows"
            parts[s] = (axis, len(w.index) if w.axis else w.shape[0])
    wants = frozenset(call.outputs) | {f"d_{s}" for s in call.updates}
    return Site(shapes, call.attrs, wants, parts)


def emit_before(program: Program, at: Call, op: str, inputs: dict[str, str], attrs: dict[str, object],
                stem: str, where: str) -> str:
    """Insert a one-output call before `at`; returns its result."""
    full = REGISTRY[op].defaults() | attrs
    call = Call(op, inputs, {}, full, where=where)
    (slot, made), = REGISTRY[op].infer(site(program, call)).items()
    result = program.add(Tensor(fresh(program, stem), made, Role.ACTIVATION, source=where)).name
    program.calls.insert(program.position(at), replace(call, outputs={slot: result}))
    return result


def whole_weight(program: Program, name: str) -> Weight:
    """The Weight of a parameter that is used as a matrix, made frozen on first sight."""
    if name not in program.weights:
        shape = program.tensors[name].shape
        program.weights[name] = Weight(name, (shape[0], shape[1]), frozen=name, trained=None)
    return program.weights[name]
