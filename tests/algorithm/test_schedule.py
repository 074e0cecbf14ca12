"""Learning-rate schedules of the device's recipe: the curve, the same float32 rates everywhere, and what goes on."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from algorithm.config import make_run_config
from algorithm.continuing import continues
from algorithm.errors import CheckpointError, ConfigError
from algorithm.models import images_to_input, input_scale_shift
from algorithm.sparse import PlanConfig, resolve_plan
from algorithm.training import TrainConfig, finetune, record_trace, run_steps
from algorithm.training.schedule import learning_rates
from tests.algorithm.conftest import small_data, small_model

DATA = small_data()
COSINE = TrainConfig(lr=0.05, schedule="cosine", warmup=0.2, min_lr=0.001, epochs=3, checkpoint_every=5)


def test_the_curves() -> None:
    total = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([torch.zeros(1)], lr=0.3), T_max=20, eta_min=0.02)
    expected = []
    for _ in range(20):
        expected.append(total.get_last_lr()[0])
        total.optimizer.step()
        total.step()
    config = TrainConfig(lr=0.3, min_lr=0.02, schedule="cosine", epochs=2)
    rates = learning_rates(config, 10)
    assert rates.dtype == np.float32 and np.array_equal(rates, np.float32(learning_rates(config, 10)))
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    linear = learning_rates(TrainConfig(lr=0.8, schedule="linear", epochs=1), 4)
    np.testing.assert_allclose(linear, [0.8, 0.6, 0.4, 0.2], rtol=1e-6)
    warm = learning_rates(TrainConfig(lr=0.5, schedule="constant", warmup=0.5, epochs=2), 5)
    np.testing.assert_allclose(warm, [0.1, 0.2, 0.3, 0.4, *[0.5] * 6], rtol=1e-6)
    for warmup in (0.0, 0.3, 0.999):
        tiny = learning_rates(TrainConfig(lr=0.001, warmup=warmup, epochs=1), 1)
        assert tiny.shape == (1,) and tiny[0] == np.float32(0.001)


def test_a_shorter_run_is_the_beginning_of_a_longer() -> None:
    whole = learning_rates(COSINE, 6)
    assert len(whole) == 18 and all(np.array_equal(
        learning_rates(COSINE.model_copy(update={"steps": n}), 6), whole[:n]) for n in (1, 7, 18))


@pytest.mark.parametrize(("options", "match"), [
    ({"schedule": "constant", "min_lr": 0.001}, "min_lr has no effect on a constant"),
    ({"schedule": "linear", "min_lr": 1.0}, "is above lr"),
    ({"schedule": "cosin"}, "schedule"), ({"warmup": 1.0}, "warmup")])
def test_what_means_nothing_is_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make_run_config([], values={f"train.{k}": v for k, v in options.items()})


def test_every_step_takes_its_rate() -> None:
    """Against torch's own SGD, told the rate of each step."""
    model = small_model()
    twin = copy.deepcopy(model)
    plan = resolve_plan(PlanConfig(enable_backward_config=False), model)
    finetune(model, plan, DATA, COSINE.model_copy(update={"epochs": 1}))
    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
    scale, shift = input_scale_shift(twin)
    for i, rate in enumerate(learning_rates(COSINE.model_copy(update={"epochs": 1}), len(DATA))):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(twin(images_to_input(DATA.images[i:i + 1], scale, shift)),
                                          torch.tensor([DATA.labels[i]])).backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_the_trace_has_the_rates_of_the_training() -> None:
    model = small_model()
    plan = resolve_plan(PlanConfig(n_bias_update=1), model)
    rates = learning_rates(COSINE, len(DATA))[:len(DATA)]
    trace = record_trace(model, plan, DATA.images, DATA.labels, rates, device="cpu")
    assert np.array_equal(trace.lrs, rates)
    losses = finetune(copy.deepcopy(model), plan, DATA, COSINE.model_copy(update={"steps": len(DATA)})).losses
    np.testing.assert_allclose(losses, trace.losses32, rtol=1e-6)
    constant, _ = run_steps(model, plan, DATA.images, DATA.labels, float(rates.mean()), 0.0, torch.float64)
    assert np.abs(constant - trace.losses64)[2:].min() > 1e-6, "a constant rate is another run"


def test_a_stopped_schedule_goes_on_and_a_longer_one_is_another_run(tmp_path: Path) -> None:
    model = small_model()
    plan = resolve_plan(PlanConfig(n_bias_update=2), model)
    whole, resumed = copy.deepcopy(model), copy.deepcopy(model)
    losses = finetune(whole, plan, DATA, COSINE).losses
    path = tmp_path / "t.safetensors"
    finetune(copy.deepcopy(model), plan, DATA, COSINE.model_copy(update={"steps": 7}), checkpoint=path)
    kept = path.read_bytes()
    for other in ({"epochs": 4}, {"epochs": 2}, {"schedule": "linear"}, {"warmup": 0.1}, {"min_lr": 0.0}):
        with pytest.raises(CheckpointError, match=r"another run \(its lr differs: step \d+ was made with 0\.\d+, now"):
            finetune(copy.deepcopy(model), plan, DATA, COSINE.model_copy(update=other), checkpoint=path)
    assert path.read_bytes() == kept
    result = finetune(resumed, plan, DATA, COSINE, checkpoint=path)
    assert result.resumed_steps == 7 and np.array_equal(result.losses, losses)
    assert all(torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True))


@pytest.mark.parametrize(("old", "new", "goes_on"), [
    (["train.schedule=cosine", "train.epochs=3"], ["train.schedule=cosine", "train.epochs=4"], False),
    (["train.schedule=cosine", "train.steps=5"], ["train.schedule=cosine", "train.steps=6"], True),
    (["train.schedule=constant", "train.warmup=0", "train.epochs=3"],
     ["train.schedule=constant", "train.warmup=0", "train.epochs=4"], True),
    (["train.schedule=constant", "train.warmup=0.1", "train.epochs=3"],
     ["train.schedule=constant", "train.warmup=0.1", "train.epochs=4"], False),
    (["train.schedule=cosine"], ["train.schedule=linear"], False), (["train.augment=shift"], ["train.augment=both"], False),
    (["train.augment=shift"], ["train.augment=shift", "train.shift=0.1"], False)])
def test_which_settings_a_schedule_goes_on_under(old: list[str], new: list[str], goes_on: bool) -> None:
    before, after = (make_run_config([], o).settings() for o in (old, new))
    assert continues(before, after) is goes_on
