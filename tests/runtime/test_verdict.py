"""The criterion by itself: what it allows, what it finds, and when it says that nothing can be told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from algorithm.distance import Distance, distance
from runtime.errors import ValidationError
from runtime.verdict import FACTOR, Outcome, TensorCheck, Validation, allowances, loss_spread

STEPS, K = 12, 8


def validation(**changes: object) -> Validation:
    rng = np.random.default_rng(0)
    losses = np.linspace(2.0, 1.0, STEPS)
    witnesses = losses + rng.normal(0, 1e-7, (K, STEPS))
    check = tensor(np.ones(50), np.zeros(50))
    made = Validation(losses + 1e-7, losses + 1e-7, losses, witnesses, [check, check])
    return replace(made, **changes)


def tensor(moved: np.ndarray, error: np.ndarray, rounding: float = 1e-6) -> TensorCheck:
    rng = np.random.default_rng(1)
    witnesses = np.array([[d.largest, d.rms, d.along] for d in (
        distance(rng.normal(0, rounding, moved.shape), moved) for _ in range(K))])
    allowed = allowances({"w": witnesses}, {"w": moved})["w"]
    return TensorCheck("w", moved.size, float(np.abs(moved).max()), float(np.sqrt(np.mean(moved ** 2))),
                       distance(error, moved), distance(error, moved), allowed)


def test_what_witnesses_do_is_allowed() -> None:
    """Of runs that are like the witnesses none is refused; `python -m benchmarks.verdict` measures real ones."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        moved = rng.normal(0, 1e-2, 40)
        assert tensor(moved, rng.normal(0, 1e-6, 40)).right


@pytest.mark.parametrize("fault", ["one element", "all a little", "too long", "NaN", "not updated"])
def test_each_kind_of_fault_shows(fault: str) -> None:
    rng = np.random.default_rng(3)
    moved = rng.normal(0, 1e-2, 4000)
    error = rng.normal(0, 1e-6, 4000)
    found = tensor(moved, {
        "one element": np.where(np.arange(4000) == 7, 1e-4, error), "all a little": error + 8e-6 * rng.choice([-1, 1], 4000),
        "too long": error + 1e-4 * moved, "NaN": np.where(np.arange(4000) == 7, np.nan, error),
        "not updated": -moved}[fault])
    assert not found.right and "update of" in found.deviation()
    if fault == "too long":     # 0.01 % of the update hides below the rounding of each element, not below that of all
        assert found.error.largest <= found.allowed.largest and found.error.along > found.allowed.along
    assert validation(tensors=[found]).outcome is Outcome.DIFFERS


def test_a_loss_may_be_six_spreads_away_and_no_more() -> None:
    v = validation()
    assert v.outcome is Outcome.PROVEN
    for times, outcome in ((0.9, Outcome.PROVEN), (1.1, Outcome.DIFFERS)):
        assert validation(losses=v.losses64 + times * v.allowed_losses).outcome is outcome
    assert validation(losses=np.where(np.arange(STEPS) == 3, np.nan, v.losses)).outcome is Outcome.DIFFERS
    assert (v.allowed_losses < 2e-6).all() and (v.allowed_losses > FACTOR * v.spread).all()


def test_a_loss_near_zero_is_judged_by_what_float32_can_do_there() -> None:
    """Relative error would cry wolf: the same roundings are large beside a small loss."""
    small = np.geomspace(1.0, 1e-6, STEPS)
    witnesses = small + np.random.default_rng(0).normal(0, 1e-7, (K, STEPS))
    assert validation(losses=small + 1e-7, losses64=small, witness_losses=witnesses).outcome is Outcome.PROVEN


def test_spread_does_not_shrink_and_early_steps_share_theirs() -> None:
    witnesses = np.zeros((K, STEPS))
    witnesses[:, 2], witnesses[:, 6] = 1e-7, 3e-7
    spread = loss_spread(witnesses, np.zeros(STEPS))
    np.testing.assert_allclose(spread, [1e-7] * 6 + [3e-7] * 6)


def test_a_chaotic_run_is_told_apart() -> None:
    losses = np.ones(STEPS)
    growth = 1e-7 * 10.0 ** np.arange(STEPS)
    witnesses = losses + growth * np.random.default_rng(0).normal(size=(K, STEPS))
    chaotic = validation(losses=losses + growth, losses64=losses, witness_losses=witnesses)
    assert chaotic.outcome is Outcome.CHAOTIC and not chaotic.passed and 2 < chaotic.horizon < STEPS
    assert "training itself is chaotic: from step" in chaotic.failures()[0]
    with pytest.raises(ValidationError, match="is not proven"):
        chaotic.require()
    early = np.where(np.arange(STEPS) == 1, 1e-2, 0.0)      # before the chaos begins, a wrong loss is still wrong
    assert validation(losses=losses + growth + early, losses64=losses, witness_losses=witnesses).outcome is Outcome.DIFFERS


def test_weights_that_hardly_move_prove_nothing() -> None:
    still = tensor(np.full(50, 1e-7), np.zeros(50))
    assert still.right and not still.resolved
    assert validation(tensors=[still, still]).outcome is Outcome.UNRESOLVED
    assert validation(tensors=[]).outcome is Outcome.UNRESOLVED
    moved = tensor(np.ones(50), np.zeros(50))
    assert validation(tensors=[still, moved, moved]).outcome is Outcome.PROVEN
    frozen = tensor(np.zeros(50), np.zeros(50))
    assert not frozen.resolved and frozen.error == Distance(0.0, 0.0, 0.0)


def test_distances_are_what_they_say() -> None:
    moved = np.array([3.0, 4.0])
    assert distance(0.5 * moved, moved) == Distance(2.0, pytest.approx(np.sqrt(12.5) / 2), 2.5)
    assert distance(np.array([4.0, -3.0]), moved).along == 0.0
    assert np.isnan(distance(np.array([np.nan, 0.0]), moved).largest)
