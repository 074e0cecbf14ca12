"""The judge of Programs, run between passes: what every well-formed Program satisfies."""

from __future__ import annotations

from compilation.errors import VerificationError
from compilation.ops import REGISTRY
from compilation.passes.rewrite import site
from compilation.program import Call, Program, Role

OWNED_ELSEWHERE = {Role.CONSTANT, Role.TRAINED, Role.STATE, Role.INPUT}


def verify(program: Program, after: str) -> None:
    """Check names, slots, shapes, order of definition and use, aliases, and that no weight is read after its update.

    Raises VerificationError naming the pass, the call and the tensor.
    """
    defined = {n for n, t in program.tensors.items() if t.role in OWNED_ELSEWHERE}
    updated: dict[str, int] = {}
    clobbered: dict[str, str] = {}     # tensor whose storage was taken over -> by which tensor
    for i, call in enumerate(program.calls):
        at = f"after {after}: call {i} {call.op} ({call.where or 'top level'})"
        for slot, name in call.inputs.items():
            if name in program.weights:
                if name in updated and updated[name] != i:
                    raise VerificationError(f"{at} reads weight {name} after call {updated[name]} updated it")
                continue
            if name not in program.tensors:
                raise VerificationError(f"{at}: slot {slot} names the unknown tensor {name}")
            if name not in defined:
                raise VerificationError(f"{at}: slot {slot} reads {name} before any call makes it")
            if name in clobbered:
                raise VerificationError(f"{at}: slot {slot} reads {name}, whose storage {clobbered[name]} took over")
            if name in updated:
                raise VerificationError(f"{at} reads {name} after call {updated[name]} updated it")
        for slot, name in call.outputs.items():
            tensor = program.tensors.get(name)
            if tensor is None:
                raise VerificationError(f"{at}: output {slot} names the unknown tensor {name}")
            if name in defined:
                raise VerificationError(f"{at}: output {slot} makes {name} a second time")
            defined.add(name)
            if tensor.alias and call.op != "reshape":
                clobbered[tensor.alias] = name
        for name in call.updates.values():
            updated[name] = i
        _check_types(program, call, at)


def _check_types(program: Program, call: Call, at: str) -> None:
    op = REGISTRY.get(call.op)
    if op is None:
        return
    for s in op.inputs:
        needed = not s.optional and (s.name not in op.needed_for
                                     or set(op.needed_for[s.name]) & (set(call.outputs) | {f"d_{u}" for u in call.updates}))
        if needed and s.name not in call.inputs:
            raise VerificationError(f"{at}: required slot {s.name} is absent")
    inferred = op.infer(site(program, call))
    for slot, name in call.outputs.items():
        tensor = program.tensors[name]
        shape, dtype = inferred[slot]
        if tuple(shape) != tensor.shape or dtype != tensor.dtype:
            raise VerificationError(f"{at}: {slot} is {dtype}{list(shape)} by the operation's rule, "
                                    f"but {name} is {tensor.dtype}{list(tensor.shape)}")
