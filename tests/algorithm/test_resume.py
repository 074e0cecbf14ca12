"""A stopped training goes on: the same bits, the same log, longer when asked; never over another run, never over damage."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithm.errors import CheckpointError, ConfigError
from algorithm.models import GramConfig
from algorithm.monitor import Monitor, MonitorConfig
from algorithm.sparse import PlanConfig, UpdatePlan, resolve_plan
from algorithm.training import TrainConfig, TrainResult, finetune, image_order
from algorithm.training.progress import Ticker
from tests.algorithm.conftest import small_data, small_model

DATA = small_data()
SLICED = {"n_bias_update": 2, "n_weight_update": 1, "weight_update_ratio": 0.25, "n_gram_update": 1}
CONFIG = TrainConfig(lr=0.05, momentum=0.9, epochs=3, checkpoint_every=5, schedule="constant")


def start() -> tuple[nn.Module, UpdatePlan]:
    model = small_model(gram=GramConfig(rank=2))
    return model, resolve_plan(PlanConfig(**SLICED), model)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def train(path: Path, config: TrainConfig = CONFIG, stop: int | None = None, kill: bool = False,
          **options: Any) -> tuple[nn.Module, TrainResult | None]:
    """A fresh model trained with a checkpoint; stopped after step `stop` (kill: without the save that a stop makes)."""
    model, plan = start()

    def on_step(step: int, loss: float) -> None:
        if step == stop:
            raise KeyboardInterrupt

    if stop is None:
        return model, finetune(model, plan, DATA, config, checkpoint=path, **options)
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(KeyboardInterrupt):
        finetune(model, plan, DATA, config, checkpoint=path, on_step=on_step)
    if kill:
        at = (stop // config.checkpoint_every) * config.checkpoint_every
        path.unlink()
        if before is not None:
            path.write_bytes(before)
        if at:
            finetune(*start(), DATA, config.model_copy(update={"steps": at}), checkpoint=path)
    return model, None


@pytest.fixture(scope="module")
def whole() -> tuple[nn.Module, np.ndarray]:
    model, plan = start()
    return model, finetune(model, plan, DATA, CONFIG).losses


@pytest.mark.parametrize("stops", [[0], [4], [7, 12], [16], [17], [1, 2, 3]])
@pytest.mark.parametrize("kill", [False, True])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(tmp_path: Path, whole: tuple[nn.Module, np.ndarray],
                                                            stops: list[int], kill: bool) -> None:
    path = tmp_path / "t.safetensors"
    for stop in stops:
        train(path, stop=stop, kill=kill)
    model, result = train(path)
    assert result is not None and np.array_equal(result.losses, whole[1]) and same(model, whole[0])
    assert result.resumed_steps == (stops[-1] // 5 * 5 if kill else stops[-1] + 1)
    again, finished = train(path)
    assert finished is not None and finished.resumed_steps == 18 and same(again, whole[0])
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


@pytest.mark.parametrize("shorter", [{"epochs": 2}, {"steps": 7}, {"epochs": 2, "steps": 9}])
def test_more_epochs_or_steps_go_on(tmp_path: Path, whole: tuple[nn.Module, np.ndarray], shorter: dict[str, int]) -> None:
    path = tmp_path / "t.safetensors"
    train(path, CONFIG.model_copy(update=shorter))
    model, result = train(path)
    assert result is not None and result.resumed_steps == shorter.get("steps", 12)
    assert np.array_equal(result.losses, whole[1]) and same(model, whole[0])
    with pytest.raises(CheckpointError, match=r"at step 18, beyond the 12 asked for: raise train.epochs"):
        train(path, CONFIG.model_copy(update={"epochs": 2}))


def test_a_longer_order_begins_with_the_shorter() -> None:
    longest = image_order(5, 4, seed=1)
    assert all(np.array_equal(image_order(5, e, 1), longest[:5 * e]) for e in (1, 2, 3))
    assert all(np.array_equal(image_order(5, 4, 1, n), longest[:n]) for n in (1, 5, 6, 19))
    with pytest.raises(ConfigError, match=r"train.steps=21 is more than 4 passes over 5 images"):
        image_order(5, 4, 1, 21)


def test_the_checkpoint_of_another_run_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    train(path, stop=7)
    kept = path.read_bytes()

    def refused(match: str, model: nn.Module, plan: UpdatePlan, data: Any = DATA, config: TrainConfig = CONFIG) -> None:
        with pytest.raises(CheckpointError, match=rf"belongs to another run \(its {match} differs"):
            finetune(model, plan, data, config, checkpoint=path)
        assert path.read_bytes() == kept

    model, plan = start()
    refused("lr", model, plan, config=CONFIG.model_copy(update={"lr": 0.06}))
    refused("momentum", model, plan, config=CONFIG.model_copy(update={"momentum": 0.8}))
    refused("seed", model, plan, config=CONFIG.model_copy(update={"seed": 1}))
    refused("data", model, plan, small_data(7))
    refused("plan", model, resolve_plan(PlanConfig(n_bias_update=1), model))
    with torch.no_grad():
        model.blocks[0].norm1.weight[0] += 1  # type: ignore[union-attr,operator,index]
    refused("initial weights", model, plan)


def test_a_damaged_checkpoint_is_set_aside_and_said(tmp_path: Path, whole: tuple[nn.Module, np.ndarray]) -> None:
    path = tmp_path / "t.safetensors"
    train(path, stop=7)
    sound = path.read_bytes()
    for n, damage in enumerate((b"broken", sound[:len(sound) // 2], b"")):
        path.write_bytes(damage)
        said: list[str] = []
        model, result = train(path, warn=said.append)
        name = "t.safetensors.damaged" + (f"-{n + 1}" if n else "")
        assert len(said) == 1 and "is damaged" in said[0] and name in said[0] and "\n" not in said[0]
        assert (tmp_path / name).read_bytes() == damage
        assert result is not None and result.resumed_steps == 0 and same(model, whole[0])


def test_the_log_has_each_step_once_and_the_shown_loss_goes_on(tmp_path: Path) -> None:
    def logged(folder: Path, stops: list[int | None]) -> tuple[list[dict[str, Any]], float]:
        made: list[int] = []
        for stop in stops:
            model, plan = start()
            ticker = Ticker("training", 18, None, None)
            with Monitor(MonitorConfig(), folder) as monitor:
                def on_step(step: int, loss: float, stop: int | None = stop, ticker: Ticker = ticker,
                            monitor: Monitor = monitor) -> None:
                    ticker.step(step, loss)
                    monitor.log(step, loss=loss)
                    made.append(step)
                    if step == stop:
                        raise KeyboardInterrupt

                def on_resume(losses: np.ndarray, ticker: Ticker = ticker, monitor: Monitor = monitor) -> None:
                    assert len(losses) == len(made)
                    ticker.resume(losses)
                    monitor.resume(losses)
                try:
                    finetune(model, plan, DATA, CONFIG, checkpoint=folder / "t.safetensors", on_step=on_step,
                             on_resume=on_resume)
                except KeyboardInterrupt:
                    assert stop is not None
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert made == list(range(18))
        return lines, ticker._loss

    straight, stopped = logged(tmp_path / "a", [None]), logged(tmp_path / "b", [3, 11, None])
    assert straight == stopped and [line["step"] for line in straight[0]] == list(range(18))


class _Unlucky:
    """A wandb whose login, log or end fails."""

    class Settings:
        def __init__(self, **options: Any) -> None: ...

    def __init__(self, fails_at: str) -> None:
        self.fails_at = fails_at

    def init(self, **options: Any) -> Any:
        assert options["config"] == {"lr": 1} and options["mode"] == "online"
        self._fail("init")
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self._fail("log")

    def finish(self) -> None:
        self._fail("finish")

    def _fail(self, what: str) -> None:
        if what == self.fails_at:
            raise RuntimeError(f"{what} failed\nlong story")


@pytest.mark.parametrize("fails_at", ["init", "log", "finish"])
def test_trouble_with_wandb_never_ends_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", _Unlucky(fails_at))
    said: list[str] = []
    with Monitor(MonitorConfig(wandb="online"), tmp_path, "n", {"lr": 1}, said.append) as monitor:
        for step in range(3):
            monitor.log(step, loss=1.0)
    assert said == [f"Weights & Biases is off from here on ({fails_at} failed); the training goes on"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        Monitor(MonitorConfig(), tmp_path / "file")

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monitor = Monitor(MonitorConfig(), tmp_path)
    monitor._file = Full()
    with pytest.raises(CheckpointError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        monitor.log(0, loss=1.0)
    monitor.close()


def test_the_threads_are_as_they_were(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    model, plan = start()
    seen: list[int] = []
    finetune(model, plan, DATA, copy.copy(CONFIG).model_copy(update={"threads": 1}),
             on_step=lambda step, loss: seen.append(torch.get_num_threads()))
    assert set(seen) == {1} and torch.get_num_threads() == 2
