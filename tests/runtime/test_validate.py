"""Replaying a trace: the proof passes where the runs agree and fails where they do not."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from runtime.errors import ValidationError
from runtime.simulator import Simulator
from runtime.validate import replay
from tests.runtime import toy
from tests.runtime.test_simulator import data


@dataclass
class ToyTrace:
    """A float64 run and a float32 run of the toy, recorded by NumPy."""

    images: np.ndarray
    labels: np.ndarray
    losses32: np.ndarray
    losses64: np.ndarray
    init: dict[str, np.ndarray]
    final32: dict[str, np.ndarray]
    final64: dict[str, np.ndarray]
    metadata: dict[str, Any] = field(default_factory=dict)


def record(steps: int = 6) -> ToyTrace:
    images, labels = data(steps)
    losses, final = toy.reference(toy.program("cols", 0.5), images, labels, 0.1, 0.5)
    rough = {k: v.astype(np.float32) + np.float32(1e-6) * np.abs(v).astype(np.float32) for k, v in final.items()}
    return ToyTrace(images, labels, np.array(losses) * (1 + 2e-6), np.array(losses), toy.values(), rough, final,
                    {"lr": 0.1, "momentum": 0.5})


def test_a_true_run_is_proven(toy_simulator: Simulator) -> None:
    seen: list[int] = []
    result = replay(toy_simulator, record(), lambda done, of: seen.append(done))
    assert result.passed, result.failures()
    assert seen == [1, 2, 3, 4, 5, 6] and result.steps == 6
    assert [t.name for t in result.tensors] == ["fc.weight.trained", "fc.bias"]
    assert 0 < result.loss_max_rel_error < 1e-5 and all(t.moved > 0.1 for t in result.tensors)
    result.require()


@pytest.mark.parametrize("name", ["fc.weight", "fc.bias"])
def test_one_wrong_weight_is_found(toy_simulator: Simulator, name: str) -> None:
    trace = record()
    for final in (trace.final64, trace.final32):    # both references move one element
        final[name] = final[name].copy()
        final[name].reshape(-1)[1] += 1e-3
    with pytest.raises(ValidationError, match=re.escape(name)):
        replay(toy_simulator, trace).require()


def test_a_wrong_loss_is_found(toy_simulator: Simulator) -> None:
    trace = record()
    trace.losses64[2] *= 1 + 1e-4       # both references move one loss
    trace.losses32[2] *= 1 + 1e-4
    assert any("loss" in f for f in replay(toy_simulator, trace).failures())


def test_a_loss_beyond_the_limit_is_not_proven_whatever_float32_does(toy_simulator: Simulator) -> None:
    trace = record()
    trace.losses64[2] *= 1 + 1e-4       # both C and float32 are now 1e-4 away
    trace.losses32 = trace.losses64 * (1 + 0.9e-4)
    assert any("allowed is 1e-05" in f for f in replay(toy_simulator, trace).failures())


def test_another_plan_or_momentum_is_refused(toy_simulator: Simulator) -> None:
    trace = record()
    with pytest.raises(ValidationError, match="momentum"):
        replay(toy_simulator, replace(trace, metadata={"lr": 0.1, "momentum": 0.9}))
    with pytest.raises(ValidationError, match=r"fc\.bias"):
        replay(toy_simulator, replace(trace, init={"fc.weight": trace.init["fc.weight"]}))
