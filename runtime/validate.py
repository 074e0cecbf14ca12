"""Replays a recorded PyTorch run in the C code and compares every loss and every trained weight with float64.

What is allowed is `runtime/verdict.py`'s to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from algorithm.distance import distance
from compilation.pieces import pieces, trained_parts
from compilation.program import Program, Tensor
from runtime.errors import SimulationError, ValidationError
from runtime.simulator import Simulator
from runtime.verdict import TensorCheck, Validation, allowances

STILL = 1e-9        # of the largest change of a trained element: a constant has not moved


class RecordedRun(Protocol):
    """What a replay reads of a trace (see `algorithm.training.trace.Trace`): S steps at batch 1."""

    images: np.ndarray              # (S, H, W, C) uint8
    labels: np.ndarray              # (S,)
    lrs: np.ndarray                 # (S,) float32, the learning rate of each step
    losses32: np.ndarray            # (S,) float64 numbers from a float32 run
    losses64: np.ndarray            # (S,)
    witness_losses: np.ndarray      # (K, S): of K float32 runs under random rounding
    init: dict[str, np.ndarray]     # whole parameters before the first step, float32
    final32: dict[str, np.ndarray]  # after the last step of the float32 run
    final64: dict[str, np.ndarray]  # after the last step of the float64 run
    witness_distances: dict[str, np.ndarray]    # (K, 3): how far each of them ended from final64
    metadata: dict[str, Any]        # at least momentum


def replay(simulator: Simulator, trace: RecordedRun, progress: Callable[[int, int], None] | None = None,
           steps: int | None = None) -> Validation:
    """Runs the trace's steps in C from its initial weights and compares.

    steps: only for a look at the losses of the first so many (the weights are then not compared). progress(done, of)
    is called after each step. Raises ValidationError where the trace does not fit the Program, SimulationError where
    the C code misbehaves.
    """
    total = len(trace.losses64)
    wanted = total if steps is None else steps
    require_fit(simulator.program, simulator.layout.trained, trace, steps)
    require_still(simulator.program, trace)
    try:
        simulator.load_trained(trace.init)
        losses = np.zeros(wanted)
        for i in range(wanted):
            losses[i] = simulator.train_step(trace.images[i], int(trace.labels[i]), float(trace.lrs[i]))
            if progress:
                progress(i + 1, wanted)
    except SimulationError as error:
        raise SimulationError(f"while replaying the trace: {error}") from None
    final = simulator.trained()
    complete = wanted == total
    tensors = compare(simulator.program, final, trace) if complete else []
    return Validation(losses, trace.losses32[:wanted], trace.losses64[:wanted], trace.witness_losses[:, :wanted], tensors,
                      complete, final)


def require_fit(program: Program, trained: list[Tensor], trace: RecordedRun, steps: int | None = None) -> None:
    """Raises ValidationError unless the trace is of a run of this Program and has so many steps (None: at least one)."""
    total = len(trace.losses64)
    wanted = total if steps is None else steps
    if not 1 <= wanted <= total:
        raise ValidationError(f"{wanted} steps cannot be replayed: the trace has {total}, and none prove nothing")
    if not trained:
        raise ValidationError("the Program trains nothing: there is nothing to prove")
    if len(trace.lrs) != total:
        raise ValidationError(f"the trace has {len(trace.lrs)} learning rates for {total} steps: record it with "
                              "algorithm.training.record_trace")
    momentum = float(trace.metadata.get("momentum", 0.0))
    if momentum != program.momentum:
        raise ValidationError(f"the trace was recorded with momentum {momentum:g}, the Program was compiled with "
                              f"{program.momentum:g}")
    known = pieces(program)
    if odd := sorted({parameter_of(t) for t in trained} - set(trace.init)) or sorted(set(trace.init) - known.keys()):
        raise ValidationError(f"{odd[0]} is trained by {'the Program' if odd[0] in known else 'the trace'} alone: they "
                              "belong to different plans")


def require_still(program: Program, trace: RecordedRun) -> None:
    """Raises ValidationError where the trace moves what the Program holds constant: elements that are not in the plan, and
    those of which the gradient is zero, but for the float64 run's rounding noise."""
    moved = {n: np.abs(trace.final64[n] - start) for n, start in trace.init.items()}
    most = max(float(m.max(initial=0.0)) for m in moved.values())
    stored = {p.parameter: p for p in trained_parts(program)}
    for name, distances in moved.items():
        rest = stored[name].rest(distances) if name in stored else distances
        if float(rest.max(initial=0.0)) > STILL * most:
            raise ValidationError(f"the trace moves {name} where the Program holds it constant: they belong to different "
                                  "plans")


def parameter_of(tensor: Tensor) -> str:
    return tensor.source or tensor.name


def compare(program: Program, final: Mapping[str, np.ndarray], trace: RecordedRun) -> list[TensorCheck]:
    """How far each trained tensor (the trained part of a partial weight) is from the float64 run, and may be."""
    parts = trained_parts(program)
    exact = {p.parameter: p.of(trace.final64[p.parameter]) for p in parts}
    allowed = allowances({n: trace.witness_distances[n] for n in exact}, exact)
    out = []
    for p in parts:
        name = p.parameter
        single, start = (p.of(group[name].astype(np.float64)) for group in (trace.final32, trace.init))
        moved = exact[name] - start
        own = final[p.name].astype(np.float64).ravel()
        out.append(TensorCheck(p.name, own.size, largest(moved), float(np.sqrt(np.mean(moved * moved))),
                               distance(own - exact[name], moved), distance(single - exact[name], moved), allowed[name]))
    return out


def largest(values: np.ndarray) -> float:
    """The largest magnitude; NaN stays NaN."""
    return float(np.max(np.abs(values), initial=0.0))
