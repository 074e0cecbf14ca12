"""The compiler, stage by stage: capture, differentiate, schedule, place. A PyTorch module in, a placed Program out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from compilation.capture import Exported, InputSpec, capture
from compilation.cost import Memory, memory
from compilation.errors import BudgetError, GradientError
from compilation.judge import judge
from compilation.memory.liveness import ALIGNMENT, lifetimes, lower_bound, padded
from compilation.memory.placement import Item, place
from compilation.memory.validate import check_program_memory
from compilation.passes.training import Selection, parameter_values
from compilation.program import Program
from compilation.scheduling import Planner, Schedule, binding
from compilation.target import CORTEX_M, Target
from compilation.tvm_adapter import import_model, importable


@dataclass
class Compiled:
    """A compiled training step.

    program: placed and verified. values: initial value of every CONSTANT and TRAINED tensor. memory: bytes by kind.
    bound: liveness lower bound of the arena. macs, time: multiply-accumulates a step and its estimated time, in those
    of full tiles; *_without_recompute: of the fastest step, whatever its RAM.
    """

    program: Program
    values: dict[str, np.ndarray]
    memory: Memory
    bound: int
    macs: int
    macs_without_recompute: int
    time: int
    time_without_recompute: int
    schedule: str
    trained_parameters: int

    @property
    def slower(self) -> float:
        """Estimated time of a step, times that without recomputation."""
        return self.time / max(self.time_without_recompute, 1)


class Compiler:
    """Compiles one model; captured once, then planned for any number of update plans and budgets. target: the core whose
    time is minimised."""

    def __init__(self, model: nn.Module, spec: InputSpec, name: str = "vit", target: Target = CORTEX_M) -> None:
        self.exported: Exported = capture(model, spec, importable())
        self.forward, self.target = import_model(self.exported, name), target
        self.shapes = self.exported.shapes
        self.zero = frozenset(n for n, v in self.exported.parameters.items() if not v.any())

    def planner(self, plan: dict[str, Selection], momentum: float = 0.0) -> Planner:
        """Raises GradientError for a parameter that the model detaches wherever it uses it."""
        if still := [n for n, s in plan.items() if s not in ("none", None) and n in self.exported.stopped]:
            raise GradientError(f"no gradient reaches {', '.join(still)}, which the model uses only detached: PyTorch "
                                "would leave it as it is; take it out of the plan")
        return Planner(self.forward, plan, self.shapes, momentum, self.zero, self.target)

    def smallest_ram(self, plan: dict[str, Selection], momentum: float = 0.0,
                     max_recompute: float | None = None) -> int:
        """Bytes of the smallest schedule of a plan (with bounded recomputation): what a search over plans asks."""
        return self.planner(plan, momentum).smallest(max_recompute).ram

    def compile(self, plan: dict[str, Selection], budget: int | None = None, momentum: float = 0.0,
                progress: Callable[[str], None] | None = None) -> Compiled:
        """The fastest training step within `budget` bytes of RAM (None: the fastest of all).

        Raises BudgetError with the smallest possible figure and what binds it, when nothing fits.
        """
        say = progress or (lambda text: None)
        planner = self.planner(plan, momentum)
        say("searching schedules")
        unconstrained = planner.unconstrained()
        schedule = unconstrained if budget is None or unconstrained.ram <= budget else planner.fastest(budget)
        if schedule is None:
            raise self.refusal("this update plan", planner.smallest(), budget or 0)
        say("placing the arena")
        return self.finish(schedule, unconstrained, budget)

    def refusal(self, what: str, smallest: Schedule, budget: int, nearest: str | None = None,
                otherwise: str = "") -> BudgetError:
        """The error for a plan that does not fit: its smallest possible RAM, what binds it, what would fit.

        otherwise: what to say where nothing near it does.
        """
        where = binding(smallest.program)
        text = (f"{what} needs at least {smallest.ram:,} bytes of RAM, {smallest.ram - budget:,} more than the budget of "
                f"{budget:,} ({smallest.fixed:,} outside the arena: trained weights, state, outputs, stack); "
                f"the arena is bound by {where}")
        after = f"nearest plan that fits: {nearest}" if nearest else otherwise
        return BudgetError(f"{text}; {after}" if after else text, smallest.ram, where, nearest)

    def finish(self, schedule: Schedule, unconstrained: Schedule, budget: int | None) -> Compiled:
        """Place, check and cost a schedule, beside the fastest one; the schedules themselves stay as they are."""
        program = schedule.program.copy()
        capacity = None if budget is None else budget - schedule.fixed
        place_program(program, capacity)
        judge(program, "place")
        cost = memory(program)
        trained = sum(int(np.prod(t.shape)) for t in program.tensors.values() if t.role.value == "trained")
        return Compiled(program, parameter_values(program, self.exported.parameters), cost, lower_bound(program),
                        schedule.macs, unconstrained.macs, schedule.time, unconstrained.time,
                        f"{schedule.streamed}; {schedule.checkpoints} checkpoints", trained)


def place_program(program: Program, capacity: int | None) -> None:
    """Give every arena tensor its offset; a judge of its own checks the result. Raises PlacementError."""
    life = lifetimes(program)
    units = [Item(n, *life[n], padded(program.tensors[n].bytes) // ALIGNMENT) for n in life]
    placement = place(units, None if capacity is None else capacity // ALIGNMENT)
    for n in life:
        program.put(n, offset=placement.offsets[n] * ALIGNMENT)
    for t in list(program.tensors.values()):
        if t.alias:
            program.put(t.name, offset=program.tensors[program.storage(t.name)].offset)
    check_program_memory(program, placement.height * ALIGNMENT)
