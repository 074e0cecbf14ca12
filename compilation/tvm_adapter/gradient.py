"""Compile-time autodiff: the forward Program through Relax's Gradient, for the wanted gradients only."""

from __future__ import annotations

from tvm.ir import Op

from compilation.errors import GradientError
from compilation.program import STOP, Call, Program
from compilation.tvm_adapter.adjoint import TAIL, adjoint_calls, culprit
from compilation.tvm_adapter.door import REMEDY, door
from compilation.tvm_adapter.relax_ops import register_all
from compilation.tvm_adapter.vjp import gradient_of


def differentiate(forward: Program, wanted: list[str]) -> tuple[list[Call], dict[str, str]]:
    """The backward calls of a forward Program that ends in a loss, and the gradient tensor of each wanted parameter.

    forward.loss names the loss tensor. Calls that depend on no wanted parameter form the frozen prefix:
    they are not shown to the differentiation at all. Gradient tensors are added to `forward.tensors`.
    Raises GradientError for an unknown parameter or an operation without a gradient.
    """
    for name in wanted:
        if name not in forward.tensors:
            raise GradientError(f"no gradient can be taken for {name!r}: the compiled model has no such parameter in use")
    calls = _between(forward, wanted)
    reached = {t for c in calls for t in c.inputs.values()}
    missing = [w for w in wanted if w not in reached]
    if missing:
        raise GradientError(f"no gradient of the loss reaches {', '.join(missing)} (detach, no_grad, or no way to the "
                            "result): PyTorch would leave it as it is; take it out of the plan")
    register_all()
    for c in calls:
        if c.op.startswith(TAIL) and Op.get(f"relax.{c.op.removeprefix(TAIL)}").get_attr("FPrimalGradient") is None:
            raise GradientError(f"operation {c.op.removeprefix(TAIL)} in {c.where or 'the model'} has no gradient: train "
                                f"only what lies above it, or {REMEDY}")
    for name in dict.fromkeys(c.op for c in calls if c.op in forward.regions):
        gradient_of(forward.regions[name])
    with door(GradientError, lambda: culprit(forward, calls), f"train only what lies above it, or {REMEDY}"):
        return adjoint_calls(forward, calls, wanted)


def _between(program: Program, wanted: list[str]) -> list[Call]:
    """The calls on a way from a wanted parameter to the loss, in order. A stopped gradient ends a way."""
    live, above = set(wanted), []
    for c in program.calls:
        if live & set(c.inputs.values()) and STOP not in c.attrs:
            above.append(c)
            live |= set(c.outputs.values())
    needed, calls = {program.loss}, []
    for c in reversed(above):
        if needed & set(c.outputs.values()):
            calls.append(c)
            needed |= set(c.inputs.values())
    return calls[::-1]
