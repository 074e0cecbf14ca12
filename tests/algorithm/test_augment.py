"""Shifts and flips: drawn by seed, pass and image, and never a view that the frozen prefix mixes up."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithm.config import make_run_config
from algorithm.errors import CheckpointError, ConfigError
from algorithm.sparse import PlanConfig, resolve_plan
from algorithm.training import TrainConfig, finetune
from algorithm.training.augment import Transform, transform_of, transformed
from algorithm.training.prefix import FrozenPrefix
from tests.algorithm.conftest import small_data, small_model

BOTH = TrainConfig(augment="both", shift=0.25, epochs=3, seed=2**40 + 5)


def test_a_transform_by_hand() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    assert np.array_equal(transformed(image, Transform()), image)
    assert np.array_equal(transformed(image, Transform(flip=True)), image[:, ::-1])
    assert transformed(image, Transform(dx=1))[:, :, 0].tolist() == [[0, 0, 2], [6, 6, 8]]
    assert transformed(image, Transform(dx=-2, dy=1))[:, :, 0].tolist() == [[4, 4, 4], [4, 4, 4]]
    assert transformed(image, Transform(dx=-1, dy=-1, flip=True))[:, :, 0].tolist() == [[8, 6, 6], [8, 6, 6]]


def test_what_is_drawn() -> None:
    drawn = [[transform_of(BOTH, 16, i, done) for i in range(400)] for done in range(4)]
    assert set(drawn[0]) == {Transform()}, "the first pass sees the images as they are"
    for done in (1, 2, 3):
        for axis in (0, 1):
            counts = np.bincount([t[axis] + 4 for t in drawn[done]], minlength=9)
            assert len(counts) == 9 and counts.min() > 20, "every shift of up to 4 pixels, about equally often"
        assert {t.flip for t in drawn[done]} == {done % 2 == 1}
    assert drawn[1] != drawn[3] and drawn == [[transform_of(BOTH, 16, i, d) for i in range(400)] for d in range(4)]
    other = BOTH.model_copy(update={"seed": 1})
    assert drawn[1] != [transform_of(other, 16, i, 1) for i in range(400)]
    few = BOTH.model_copy(update={"variants": 2})
    assert [transform_of(few, 16, 7, d) for d in range(4)] == [drawn[0][7], drawn[1][7]] * 2
    flips = TrainConfig(augment="flip")
    assert [transform_of(flips, 16, 3, d) for d in range(3)] == [Transform(), Transform(flip=True), Transform()]
    assert {transform_of(TrainConfig(augment="off"), 16, i, 3) for i in range(9)} == {Transform()}


def test_off_is_off_in_yaml() -> None:
    assert make_run_config([], ["train.augment=off"]).train.augment == "off"


@pytest.mark.parametrize(("options", "match"), [
    ({"train.shift": 0.1}, "shift is given, but augment=off"),
    ({"train.augment": "flip", "train.shift": 0.1}, "shift is given, but augment=flip"),
    ({"train.augment": "off", "train.variants": 4}, "variants is given, but augment=off")])
def test_what_means_nothing_is_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make_run_config([], values={"train.augment": "off", **options})


@pytest.mark.parametrize("options", [{}, {"variants": 2}, {"augment": "flip"}])
def test_the_cache_changes_no_bit_and_runs_each_view_once(monkeypatch: pytest.MonkeyPatch,
                                                          options: dict[str, object]) -> None:
    config = TrainConfig(lr=0.02, epochs=4, augment="both", shift=0.25).model_copy(update=options)
    model, data = small_model(), small_data()
    plan = resolve_plan(PlanConfig(n_bias_update=1), model)
    runs = 0
    below = FrozenPrefix.below

    def counted(self: FrozenPrefix, x: torch.Tensor) -> torch.Tensor:
        nonlocal runs
        runs += 1
        return below(self, x)

    monkeypatch.setattr(FrozenPrefix, "below", counted)
    cached, plain = copy.deepcopy(model), copy.deepcopy(model)
    with_cache = finetune(cached, plan, data, config).losses
    views = {(i, transform_of(config, 16, i, done)) for i in range(len(data)) for done in range(4)}
    assert runs == len(views) + 1       # and once to see that the two halves are the whole
    monkeypatch.setattr("algorithm.training.loop.CACHE_BYTES", 0)
    without = finetune(plain, plan, data, config).losses
    assert runs == len(views) + 1 + 4 * len(data) + 1
    assert np.array_equal(with_cache, without)
    assert all(torch.equal(a, b) for a, b in zip(cached.state_dict().values(), plain.state_dict().values(), strict=True))
    plainly = finetune(copy.deepcopy(model), plan, data, TrainConfig(lr=0.02, epochs=4)).losses
    assert np.array_equal(plainly[:6], without[:6]) and not np.array_equal(plainly[6:], without[6:])


def test_a_stopped_training_goes_on_with_the_same_pixels(tmp_path: Path) -> None:
    config = BOTH.model_copy(update={"lr": 0.05})
    model, data, path = small_model(), small_data(), tmp_path / "t.safetensors"
    plan = resolve_plan(PlanConfig(n_bias_update=2), model)
    whole, resumed = copy.deepcopy(model), copy.deepcopy(model)
    losses = finetune(whole, plan, data, config).losses
    finetune(copy.deepcopy(model), plan, data, config.model_copy(update={"steps": 9}), checkpoint=path)
    with pytest.raises(CheckpointError, match="its augmentation differs"):
        finetune(copy.deepcopy(model), plan, data, config.model_copy(update={"augment": "shift"}), checkpoint=path)
    result = finetune(resumed, plan, data, config, checkpoint=path)
    assert result.resumed_steps == 9 and np.array_equal(result.losses, losses)
    assert all(torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True))
