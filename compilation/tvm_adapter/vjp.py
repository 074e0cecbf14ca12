"""The gradient of a region: its definition differentiated through the same door, once for each distinct region."""

from __future__ import annotations

from compilation.errors import GradientError
from compilation.program import Role, Tensor
from compilation.regions.calls import needed
from compilation.regions.definition import numbered
from compilation.regions.region import Region
from compilation.tvm_adapter.adjoint import adjoint_calls, culprit
from compilation.tvm_adapter.door import REMEDY, door
from compilation.tvm_adapter.relax_ops import DY, RULES_OF_REGIONS, Rule, pairing, register_all
from compilation.types import F32


def gradient_of(region: Region) -> Region | None:
    """The region that makes the gradients of a region's input slots, from them and `dy`, the gradient of its one result.

    Its results are d_<slot>, but for slots whose gradient is dy itself or that of another slot (the rule in
    `relax_ops.RULES_OF_REGIONS` says so); None where nothing is left. Raises GradientError for an operation without one.
    """
    if region.name not in RULES_OF_REGIONS:
        register_all()
        program, calls = region.definition, region.definition.calls
        with door(GradientError, lambda: culprit(program, calls), f"train only what lies above it, or {REMEDY}"):
            RULES_OF_REGIONS[region.name] = _differentiated(region)
    made = RULES_OF_REGIONS[region.name].op
    assert made is None or isinstance(made, Region)
    return made


def _differentiated(region: Region) -> Rule:
    work, (result,) = region.definition.copy(), region.results
    slots = [n for n, t in work.tensors.items() if t.role in (Role.INPUT, Role.CONSTANT) and t.element == F32]
    work.add(Tensor(DY, work.tensors[result].type, Role.INPUT))
    backward, gradients = adjoint_calls(work, work.calls, slots, lambda values: pairing(values[result], values[DY]))
    names: dict[str, str] = {}          # gradient tensor -> result of the gradient region
    gives = {s: t if t == DY else names.setdefault(t, f"d_{s}") for s, t in gradients.items()}
    if not names:
        return Rule(None, gives)
    work.calls = needed([*work.calls, *backward], set(names))
    return Rule(Region(numbered(work, names), tuple(names.values())), gives)
