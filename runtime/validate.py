"""Replays a recorded PyTorch run in the C code and compares every loss and every trained weight.

Everything is measured against float64 PyTorch, for the C run and, as the yardstick, for float32 PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from compilation.program import Program, Tensor
from runtime.codegen.layout import part_of, slice_part
from runtime.errors import SimulationError, ValidationError
from runtime.simulator import Simulator

LOSS_LIMIT = 1e-5           # relative, against float64
TIMES_FLOAT32 = 2.0         # how much further from float64 than float32 PyTorch the C run may be, at their worst
UPDATE_LIMIT = 1e-5         # of a tensor's own largest change: finds a wrong gradient beside larger weights
ULP = float(np.finfo(np.float32).eps)


class RecordedRun(Protocol):
    """What a replay reads of a trace (see `algorithm.training.trace.Trace`): S steps at batch 1."""

    images: np.ndarray              # (S, H, W, C) uint8
    labels: np.ndarray              # (S,)
    losses32: np.ndarray            # (S,) float64 numbers from a float32 run
    losses64: np.ndarray            # (S,)
    init: dict[str, np.ndarray]     # whole parameters before the first step, float32
    final32: dict[str, np.ndarray]  # after the last step of the float32 run
    final64: dict[str, np.ndarray]  # after the last step of the float64 run
    metadata: dict[str, Any]        # at least lr, momentum


@dataclass(frozen=True)
class TensorError:
    """Largest absolute distance from float64 of a trained tensor after the last step."""

    name: str
    count: int
    c: float
    float32: float
    largest: float              # largest float64 value
    moved: float                # largest change from the initial value, in float64

    @property
    def within_twice(self) -> bool:
        """At most twice float32 PyTorch's error in this very tensor, or the rounding of its largest value."""
        return self.c <= max(TIMES_FLOAT32 * self.float32, ULP * self.largest)

    @property
    def right(self) -> bool:
        """The update itself is right: its error is within UPDATE_LIMIT of what the training changed."""
        return self.within_twice or self.c <= UPDATE_LIMIT * self.moved


@dataclass
class Validation:
    """The comparison. Errors are against float64: losses relative, weights absolute."""

    losses: np.ndarray          # (S,) of the C run
    losses32: np.ndarray
    losses64: np.ndarray
    tensors: list[TensorError]
    final: dict[str, np.ndarray] = field(repr=False, default_factory=dict)   # C: trained tensor -> stored part

    @property
    def steps(self) -> int:
        return len(self.losses)

    @property
    def loss_max_rel_error(self) -> float:
        return relative(self.losses, self.losses64)

    @property
    def loss_max_rel_error_float32(self) -> float:
        return relative(self.losses32, self.losses64)

    @property
    def weight_max_abs_error(self) -> float:
        return max((t.c for t in self.tensors), default=0.0)

    @property
    def weight_max_abs_error_float32(self) -> float:
        return max((t.float32 for t in self.tensors), default=0.0)

    def failures(self) -> list[str]:
        """What is further away than allowed; empty when the C run is proven.

        The worst loss and the worst weight may be twice as far from float64 as float32 PyTorch's worst, the loss never
        further than LOSS_LIMIT, and of every tensor the update must be right (`TensorError.right`). Where float32
        PyTorch itself leaves LOSS_LIMIT (training diverges, or a loss comes close to 0) nothing can be proven.
        """
        out = []
        loss, limit = self.loss_max_rel_error, max(TIMES_FLOAT32 * self.loss_max_rel_error_float32, ULP)
        if not loss < LOSS_LIMIT:
            out.append(f"loss is {loss:.2e} (relative) from float64, allowed is {LOSS_LIMIT:.0e}")
        if not loss <= limit:
            out.append(f"loss is {loss:.2e} (relative) from float64, more than {TIMES_FLOAT32:g} x float32 PyTorch's "
                       f"{self.loss_max_rel_error_float32:.2e}")
        worst, allowed = self.weight_max_abs_error, TIMES_FLOAT32 * self.weight_max_abs_error_float32
        if not worst <= max(allowed, ULP * max((t.largest for t in self.tensors), default=0.0)):
            out.append(f"a weight is {worst:.2e} from float64, more than {TIMES_FLOAT32:g} x float32 PyTorch's "
                       f"{self.weight_max_abs_error_float32:.2e}")
        out += [f"{t.name} is {t.c:.2e} from float64 where training changed it by {t.moved:.2e} (float32 PyTorch is "
                f"{t.float32:.2e} away)" for t in self.tensors if not t.right]
        return out

    @property
    def tensors_within_twice(self) -> int:
        """How many trained tensors are within twice float32 PyTorch's error each by itself."""
        return sum(t.within_twice for t in self.tensors)

    @property
    def passed(self) -> bool:
        return not self.failures()

    def require(self) -> None:
        """Raises ValidationError with the worst deviations unless the run is proven."""
        if failures := self.failures():
            raise ValidationError(f"the C run differs from PyTorch ({self.steps} steps): " + "; ".join(failures[:3]))


def relative(losses: np.ndarray, reference: np.ndarray) -> float:
    """max |a - b| / |b|; infinite where a is not finite."""
    error = np.abs(losses - reference) / np.maximum(np.abs(reference), np.finfo(np.float64).tiny)
    return float(np.max(np.where(np.isfinite(error), error, np.inf), initial=0.0))


def replay(simulator: Simulator, trace: RecordedRun, progress: Callable[[int, int], None] | None = None,
           steps: int | None = None) -> Validation:
    """Runs the trace's steps in C from its initial weights and compares.

    steps: only for a look at the losses of the first so many (the weights are then not compared). progress(done, of)
    is called after each step. Raises ValidationError where the trace does not fit the Program, SimulationError where
    the C code misbehaves.
    """
    total = len(trace.losses64)
    wanted = total if steps is None else min(steps, total)
    if "lr" not in trace.metadata:
        raise ValidationError("the trace's metadata has no lr: record it with algorithm.training.record_trace")
    momentum = float(trace.metadata.get("momentum", 0.0))
    if momentum != float(simulator.program.meta.get("momentum", 0.0)):
        raise ValidationError(f"the trace was recorded with momentum {momentum:g}, the Program was compiled with "
                              f"{float(simulator.program.meta.get('momentum', 0.0)):g}")
    missing = [t.name for t in simulator.layout.trained if parameter_of(t) not in trace.init]
    if missing:
        raise ValidationError(f"the trace has no initial value of {missing[0]}: it belongs to another plan")
    lr = float(trace.metadata["lr"])
    try:
        simulator.load_trained(trace.init)
        losses = np.zeros(wanted)
        for i in range(wanted):
            losses[i] = simulator.train_step(trace.images[i], int(trace.labels[i]), lr)
            if progress:
                progress(i + 1, wanted)
    except SimulationError as error:
        raise SimulationError(f"while replaying the trace: {error}") from None
    final = simulator.trained()
    tensors = compare(simulator.program, simulator.layout.trained, final, trace) if wanted == total else []
    return Validation(losses, trace.losses32[:wanted], trace.losses64[:wanted], tensors, final)


def parameter_of(tensor: Tensor) -> str:
    return tensor.source or tensor.name


def compare(program: Program, trained: list[Tensor], final: Mapping[str, np.ndarray], trace: RecordedRun
            ) -> list[TensorError]:
    """The distance of each trained tensor (the trained part of a partial weight) from the float64 run."""
    out = []
    for t in trained:
        exact, single, start = (stored_part(program, t, group[parameter_of(t)].astype(np.float64))
                                for group in (trace.final64, trace.final32, trace.init))
        own = final[t.name].astype(np.float64).ravel()
        out.append(TensorError(t.name, own.size, largest(own - exact), largest(single - exact), largest(exact),
                               largest(exact - start)))
    return out


def largest(values: np.ndarray) -> float:
    """The largest magnitude; NaN stays NaN."""
    return float(np.max(np.abs(values), initial=0.0))


def stored_part(program: Program, tensor: Tensor, whole: np.ndarray) -> np.ndarray:
    """The elements of a whole parameter that a trained tensor stores, flat."""
    found = part_of(program, tensor.name)
    return (whole if found is None else slice_part(*found, whole)).ravel()
