"""Replaying a trace: the proof passes where the runs agree and fails where they do not."""

from __future__ import annotations

import re
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from algorithm.distance import distance
from runtime.errors import ValidationError
from runtime.simulator import Simulator
from runtime.validate import replay
from runtime.verdict import Outcome
from tests.runtime import toy
from tests.runtime.test_simulator import data


@dataclass
class ToyTrace:
    """A float64 run of the toy by NumPy, a float32 run near it, and witnesses that differ by roundings."""

    images: np.ndarray
    labels: np.ndarray
    lrs: np.ndarray
    losses32: np.ndarray
    losses64: np.ndarray
    witness_losses: np.ndarray
    init: dict[str, np.ndarray]
    final32: dict[str, np.ndarray]
    final64: dict[str, np.ndarray]
    witness_distances: dict[str, np.ndarray]
    metadata: dict[str, Any] = field(default_factory=dict)


def record(steps: int = 6) -> ToyTrace:
    images, labels = data(steps)
    losses, final = toy.reference(toy.program("cols", 0.5), images, labels, 0.1, 0.5)
    rng = np.random.default_rng(1)
    start = toy.values()

    def rounded(v: np.ndarray) -> np.ndarray:
        return v * (1 + rng.normal(0, 1.5e-7, v.shape))

    def part(name: str, whole: np.ndarray) -> np.ndarray:
        return toy.part(toy.program("cols"), whole) if name == "fc.weight" else whole

    witnesses = [{n: rounded(v) for n, v in final.items()} for _ in range(8)]
    distances = {n: np.array([astuple(distance(part(n, w[n] - v), part(n, v - start[n]))) for w in witnesses])
                 for n, v in final.items()}
    exact = np.array(losses)
    return ToyTrace(images, labels, np.full(steps, 0.1, np.float32), rounded(exact), exact,
                    np.stack([rounded(exact) for _ in range(8)]), start,
                    {n: v.astype(np.float32) for n, v in witnesses[0].items()}, final, distances,
                    {"momentum": 0.5})


def test_a_true_run_is_proven(toy_simulator: Simulator) -> None:
    seen: list[int] = []
    result = replay(toy_simulator, record(), lambda done, of: seen.append(done))
    assert result.outcome is Outcome.PROVEN and result.passed, result.failures()
    assert seen == [1, 2, 3, 4, 5, 6] and result.steps == 6
    assert [t.name for t in result.tensors] == ["fc.weight.trained", "fc.bias"]
    assert 0 < result.loss_max_rel_error < 1e-5 and all(t.moved > 0.1 for t in result.tensors)
    assert all(t.resolution < 1e-4 for t in result.tensors), "the update is checked to a small share of itself"
    result.require()


@pytest.mark.parametrize("name", ["fc.weight", "fc.bias"])
def test_one_wrong_weight_is_found(toy_simulator: Simulator, name: str) -> None:
    trace = record()
    trace.final64[name].reshape(-1)[1] += 1e-5
    result = replay(toy_simulator, trace)
    assert result.outcome is Outcome.DIFFERS
    with pytest.raises(ValidationError, match=re.escape(name)):
        result.require()


def test_a_wrong_loss_is_found(toy_simulator: Simulator) -> None:
    trace = record()
    trace.losses64[2] *= 1 + 1e-5
    trace.witness_losses[:, 2] *= 1 + 1e-5
    assert any("the loss of step 3 is" in f for f in replay(toy_simulator, trace).failures())


def test_the_first_steps_alone_are_no_proof(toy_simulator: Simulator) -> None:
    result = replay(toy_simulator, record(), steps=2)
    assert result.outcome is Outcome.AGREES and not result.passed and not result.failures() and not result.tensors
    with pytest.raises(ValidationError, match="only some of the steps"):
        result.require()
    for steps in (0, -1, 7):
        with pytest.raises(ValidationError, match="steps cannot be replayed"):
            replay(toy_simulator, record(), steps=steps)


def test_another_plan_or_momentum_is_refused(toy_simulator: Simulator) -> None:
    trace = record()
    with pytest.raises(ValidationError, match="momentum"):
        replay(toy_simulator, replace(trace, metadata={"momentum": 0.9}))
    with pytest.raises(ValidationError, match=r"fc\.bias is trained by the Program alone"):
        replay(toy_simulator, replace(trace, init={"fc.weight": trace.init["fc.weight"]}))
    with pytest.raises(ValidationError, match=r"other is trained by the trace alone"):
        replay(toy_simulator, replace(trace, init={**trace.init, "other": np.zeros(1)}))
