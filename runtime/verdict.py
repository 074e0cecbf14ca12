"""The verdict: is the C run what correct float32 code can compute? The one place where the criterion stands.

Correct programs for one training run differ: they order sums in other ways and use other elementary functions. How far
they may be from the float64 run is measured, not guessed: K float32 runs of PyTorch with random rounding (the witnesses,
`algorithm/training/rounding.py`) give the spread of each loss and of each trained tensor, and the C run may be FACTOR
times as far as their root mean square. `docs/verdict.md` derives the criterion and states its measured error rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from algorithm.distance import Distance
from runtime.errors import ValidationError

FACTOR = 6.0                # allowed distance, in root mean squares of the witnesses' distances
ULP = 2.0 ** -23            # relative; the floor below which no distance is held against a run
FLOOR = 2.0                 # ... in units in the last place
TOGETHER = 5                # the first steps share one spread: a single early loss may be right by luck in all witnesses
CHAOS = 1e-2                # rounding alone may move a loss by this share of it; beyond, the run proves nothing
RESOLVED = 0.5              # a tensor's allowed error, as a share of its update, up to which a missing update shows


class Outcome(str, Enum):
    """What the comparison says."""

    PROVEN = "proven"               # every loss and every trained tensor is where correct float32 code is
    AGREES = "losses agree"         # so are the losses of the first steps; the weights were not compared
    DIFFERS = "differs"             # something is further away than correct float32 code can be
    CHAOTIC = "chaotic"             # rounding errors grow so fast that correct programs differ visibly: no proof
    UNRESOLVED = "unresolved"       # the weights moved too little for float32 to tell an update from none: no proof


@dataclass(frozen=True)
class TensorCheck:
    """A trained tensor after the last step. Distances are from float64, in the unit of the weights.

    moved, moved_rms: the largest and the root mean square of its right change. error: of the C run; float32: of
    PyTorch's own float32 run, for comparison only; allowed: what the witnesses leave open.
    """

    name: str
    count: int
    moved: float
    moved_rms: float
    error: Distance
    float32: Distance
    allowed: Distance

    @property
    def right(self) -> bool:
        """No distance is beyond what is allowed (a NaN is)."""
        e, a = self.error, self.allowed
        return bool(e.largest <= a.largest and e.rms <= a.rms and e.along <= a.along)

    @property
    def resolution(self) -> float:
        """The allowed error as a share of the update: smaller faults do not show. Infinite where nothing moved."""
        return self.allowed.rms / self.moved_rms if self.moved_rms else float("inf")

    @property
    def resolved(self) -> bool:
        """Whether a missing update would have been seen."""
        return bool(self.resolution <= RESOLVED)

    def deviation(self) -> str:
        """What is wrong, for people."""
        parts = [f"{what} error {error:.2e} (allowed {allowed:.2e})" for what, error, allowed in (
            ("largest", self.error.largest, self.allowed.largest), ("mean", self.error.rms, self.allowed.rms),
            ("lengthwise", self.error.along, self.allowed.along)) if not error <= allowed]
        return f"{self.name}: {', '.join(parts)} in an update of {self.moved:.2e}"


@dataclass
class Validation:
    """The comparison of S replayed steps: losses (S,) of C, of float32 and of float64 PyTorch, and the spread (S,) of the
    witnesses' losses (root mean square distance from float64). tensors: empty when only the first steps were replayed.
    """

    losses: np.ndarray
    losses32: np.ndarray
    losses64: np.ndarray
    witness_losses: np.ndarray      # (K, S)
    tensors: list[TensorCheck]
    complete: bool = True           # all recorded steps were replayed
    final: dict[str, np.ndarray] = field(repr=False, default_factory=dict)   # C: trained tensor -> stored part

    @property
    def steps(self) -> int:
        return len(self.losses)

    @property
    def spread(self) -> np.ndarray:
        return loss_spread(self.witness_losses, self.losses64)

    @property
    def allowed_losses(self) -> np.ndarray:
        """(S,): how far each loss may be from float64."""
        return FACTOR * self.spread + FLOOR * ULP * np.maximum(1.0, np.abs(self.losses64))

    @property
    def horizon(self) -> int:
        """How many steps float32 arithmetic determines the run: all, unless training is chaotic."""
        size = np.maximum(np.abs(self.losses64), np.mean(np.abs(self.losses64)))
        lost = np.flatnonzero(~(FACTOR * self.spread <= CHAOS * size))
        return int(lost[0]) if len(lost) else self.steps

    @property
    def resolved(self) -> int:
        """How many trained tensors moved enough for a missing update to show."""
        return sum(t.resolved for t in self.tensors)

    @property
    def outcome(self) -> Outcome:
        if self.deviations():
            return Outcome.DIFFERS
        if self.horizon < self.steps:
            return Outcome.CHAOTIC
        if not self.complete and self.steps:
            return Outcome.AGREES
        return Outcome.PROVEN if 2 * self.resolved > len(self.tensors) else Outcome.UNRESOLVED

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PROVEN

    def deviations(self) -> list[str]:
        """What is further away than correct float32 code can be; of a chaotic run only its first steps are judged."""
        error, allowed = np.abs(self.losses - self.losses64), self.allowed_losses
        wrong = [i for i in range(self.horizon) if not error[i] <= allowed[i]]
        out = [f"the loss of step {i + 1} is {error[i]:.2e} from float64, allowed is {allowed[i]:.2e}" for i in wrong]
        if self.horizon == self.steps:
            out += [t.deviation() for t in self.tensors if not t.right]
        return out

    def failures(self) -> list[str]:
        """Why the run is not proven, one line each; empty when it is (or when the losses asked for agree)."""
        outcome = self.outcome
        if outcome is Outcome.CHAOTIC:
            at = self.horizon
            return [f"training itself is chaotic: from step {at + 1} on correct float32 programs differ by "
                    f"{self.spread[at] / max(abs(self.losses64[at]), 1e-30):.0e} of the loss, so nothing can be proven; "
                    f"the {at} steps before agree: record fewer steps (train.trace_steps) or lower train.lr"]
        if outcome is Outcome.UNRESOLVED:
            return [f"only {self.resolved} of {len(self.tensors)} trained tensors moved by more than float32 resolves, so "
                    "an update cannot be told from none: record more steps (train.trace_steps) or raise train.lr"]
        return self.deviations()

    def require(self) -> None:
        """Raises ValidationError with the worst deviations unless the run is proven."""
        if not self.passed:
            text = "; ".join(self.failures()[:3]) or "only some of the steps were compared"
            differs = "the C run differs from PyTorch" if self.outcome is Outcome.DIFFERS else "the C run is not proven"
            raise ValidationError(f"{differs} ({self.steps} steps): {text}")

    # -- single figures, for tables -----------------------------------------------------------------
    @property
    def loss_max_rel_error(self) -> float:
        return relative(self.losses, self.losses64)

    @property
    def loss_max_rel_error_float32(self) -> float:
        return relative(self.losses32, self.losses64)

    @property
    def weight_max_abs_error(self) -> float:
        return max((t.error.largest for t in self.tensors), default=0.0)

    @property
    def weight_max_abs_error_float32(self) -> float:
        return max((t.float32.largest for t in self.tensors), default=0.0)

    @property
    def worst_resolution(self) -> float:
        """Of the resolved tensors, the largest allowed error as a share of the update."""
        return max((t.resolution for t in self.tensors if t.resolved), default=float("nan"))


def relative(losses: np.ndarray, reference: np.ndarray) -> float:
    """max |a - b| / |b|; infinite where a is not finite."""
    error = np.abs(losses - reference) / np.maximum(np.abs(reference), np.finfo(np.float64).tiny)
    return float(np.max(np.where(np.isfinite(error), error, np.inf), initial=0.0))


def loss_spread(witness_losses: np.ndarray, losses64: np.ndarray) -> np.ndarray:
    """(S,): root mean square distance of the witnesses' losses (K, S) from float64, so far: errors do not shrink again.

    The first TOGETHER steps share their largest.
    """
    spread = np.maximum.accumulate(np.sqrt(np.mean((witness_losses - losses64) ** 2, axis=0)))
    spread[:TOGETHER] = spread[min(TOGETHER, len(spread)) - 1] if len(spread) else spread[:TOGETHER]
    return np.asarray(spread)


def allowances(witness_distances: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> dict[str, Distance]:
    """What each trained tensor's distances may be.

    witness_distances: parameter -> (K, 3), see `algorithm.distance`. values: parameter -> the trained part in float64,
    for the floor. `along` is one number a witness and tensor, so its spread is taken over all tensors, in units of rms.
    """
    scale = {n: np.sqrt(np.mean(d ** 2, axis=0)) for n, d in witness_distances.items()}
    ratios = [d[:, 2] / scale[n][1] for n, d in witness_distances.items() if scale[n][1] > 0]
    common = float(np.sqrt(np.mean(np.square(ratios)))) if ratios else 1.0
    out = {}
    for name, (largest, rms, along) in scale.items():
        v = np.abs(values[name])
        top, mean = float(v.max(initial=0.0)), float(np.sqrt(np.mean(v * v))) if v.size else 0.0
        unit = FLOOR * ULP
        out[name] = Distance(FACTOR * largest + unit * top, FACTOR * rms + unit * mean,
                             FACTOR * max(along, common * rms) + unit * mean)
    return out
