"""What a Program costs: RAM and flash bytes, multiply-accumulates and estimated time (recomputation included)."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from compilation.passes.rewrite import site
from compilation.program import VIEW, Call, Program, Role
from compilation.target import Target
from compilation.types import INDEX

FLASH_ALIGNMENT = 16  # bytes; where constant tensors begin in flash
SEAL_BYTES = 8  # at the end of the constants: by what the device knows that they are whole and where they should be
STACK_BYTES = 4096  # reserved for the step's own stack; the simulator measures that less is used


def call_macs(program: Program, call: Call) -> int:
    """Multiply-accumulates of one call with its present settings (0 for pure renamings)."""
    if not program.has_op(call):
        return int(call.attrs.get("macs", 0))
    return program.op(call).macs(site(program, call))


def total_macs(program: Program) -> int:
    """Multiply-accumulates of one training step, the long tail's included: exactly what the C counter counts."""
    return sum(call_macs(program, c) for c in program.calls)


def call_time(program: Program, call: Call, target: Target) -> int:
    """Estimated time of one call with its present settings, in multiply-accumulates of full tiles (0 for pure renamings)."""
    if program.has_op(call):
        return program.op(call).time(site(program, call), target)
    elements = sum(prod(program.tensors[t].shape) for t in call.outputs.values())
    return 0 if call.op == VIEW else int(target.time(call_macs(program, call), elements, 1, 0))


def total_time(program: Program, target: Target) -> int:
    """Estimated time of one training step, in multiply-accumulates of full tiles."""
    return sum(call_time(program, c, target) for c in program.calls)


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step by kind. `total` is what the budget limits. flash: weights, without code
    and index tables."""

    arena: int
    trained: int
    state: int
    outputs: int
    stack: int
    flash: int

    @property
    def total(self) -> int:
        return self.arena + self.trained + self.state + self.outputs + self.stack


def fixed_bytes(program: Program) -> int:
    """RAM outside the arena: trained weights, optimiser state, outputs, stack."""
    return program.role_bytes(Role.TRAINED, Role.STATE, Role.OUTPUT) + STACK_BYTES


def memory(program: Program, arena: int | None = None) -> Memory:
    """Memory of a (placed) Program. Flash holds constants, aligned, the initial values of trained weights, the seal."""
    constants = sum(-(-t.bytes // FLASH_ALIGNMENT) * FLASH_ALIGNMENT for t in program.tensors.values()
                    if t.role is Role.CONSTANT and t.element != INDEX)
    return Memory(
        arena=program.arena_bytes if arena is None else arena,
        trained=program.role_bytes(Role.TRAINED), state=program.role_bytes(Role.STATE),
        outputs=program.role_bytes(Role.OUTPUT), stack=STACK_BYTES,
        flash=constants + program.role_bytes(Role.TRAINED) + SEAL_BYTES)
