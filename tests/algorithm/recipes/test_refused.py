"""Damaged and foreign checkpoints, typos, a training that diverges: one clear line each, and the last checkpoint whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

from algorithm.errors import AlgorithmError, CheckpointError, ConfigError, DataError, NonFiniteLossError
from algorithm.experiment import Experiment
from algorithm.models import build_model
from algorithm.recipes.check import check_experiment
from algorithm.recipes.checkpoint import Keeper, load_checkpoint, newest
from algorithm.recipes.engine import Silent, train
from algorithm.training.checkpoint import write_safetensors
from tests.algorithm.recipes.forks import RICH, differing, experiment, trained, weights
from tests.algorithm.recipes.small import tensors


class Lines(Silent):
    """A console that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def overwritten(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize("damage", [overwritten])
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_taken(damage: Any, tmp_path: Path) -> None:
    trained(tmp_path / "whole", RICH)
    trained(tmp_path / "x", RICH)
    last = tmp_path / "x/checkpoints/step-00000010.safetensors"
    for path in last.parent.glob("[lb]*.safetensors"):
        path.unlink()                   # `latest` is the same file
    damage(last)
    console = Lines()
    outcome = train(experiment(RICH), tmp_path / "x", console=console)
    assert outcome.updates == 10 and differing(tensors(tmp_path / "x"), tensors(tmp_path / "whole")) == []
    assert last.with_name(last.name + ".damaged").exists() and last.exists()
    assert "step-00000010.safetensors is damaged" in console.said[0] and "the one before is taken" in console.said[0]
    assert "goes on after update 8 of 10" in console.said[1]
    for alias in ("latest", "best"):
        assert load_checkpoint(tmp_path / f"x/checkpoints/{alias}.safetensors").tensors.keys()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    trained(folder, RICH)
    return folder


def test_one_whose_tensors_are_of_another_shape_is_refused(done: Path, tmp_path: Path) -> None:
    """A header that says the right thing over tensors of another model."""
    from algorithm.training.checkpoint import read_safetensors
    path = newest(done)
    assert path is not None
    tensors, said = read_safetensors(path)
    write_safetensors(tmp_path / "x.safetensors", {**tensors, "head.weight": torch.zeros(4, 15)}, said)
    with pytest.raises(CheckpointError, match=r"'head.weight' is \(4, 15\), in the model \(4, 16\)"):
        trained(tmp_path / "x", RICH, {"output": {"resume": str(tmp_path / "x.safetensors")}})
    missing = {n: t for n, t in tensors.items() if not n.startswith("optim/")}
    write_safetensors(tmp_path / "y.safetensors", missing, said)
    with pytest.raises(CheckpointError, match="its state of optim is not whole"):
        trained(tmp_path / "x", RICH, {"output": {"resume": str(tmp_path / "y.safetensors")}})


def test_a_file_that_is_no_checkpoint_of_ours_says_what_to_do_with_it(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "timm.safetensors", dict(build_model(experiment().model).state_dict()), {})
    with pytest.raises(CheckpointError, match=r"to begin with its weights, give it as model\.weights"):
        trained(tmp_path, {"output": {"resume": str(tmp_path / "timm.safetensors")}})


def test_a_folder_keeps_as_many_as_asked_and_files_that_are_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/mine.txt").write_text("x")
    trained(tmp_path, RICH, {"recipe": {"keep": 2, "checkpoint_every": 1}})
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.safetensors", "latest.safetensors", "mine.txt", "step-00000009.safetensors",
                     "step-00000010.safetensors"]
    best = load_checkpoint(tmp_path / "checkpoints/best.safetensors")
    assert best.best == load_checkpoint(tmp_path / "checkpoints/latest.safetensors").best
    assert Keeper(tmp_path, 2).path(10) == newest(tmp_path)


def test_a_checkpoint_begins_another_training_and_loads_in_timm(done: Path, tmp_path: Path) -> None:
    path = newest(done)
    assert path is not None
    config = experiment().model
    here = build_model(config.model_copy(update={"weights": str(path)}))
    assert differing(dict(here.state_dict()), weights(done)) == []
    plain = timm.create_model(config.name, img_size=16, patch_size=8, num_classes=4, **config.extra)
    plain.load_state_dict(weights(done))
    other = timm.create_model(config.name, img_size=16, patch_size=8, num_classes=4, **config.extra)
    timm.models.load_checkpoint(other, str(path), strict=False)
    assert differing(dict(other.state_dict()), dict(plain.state_dict())) == []
    assert {n.partition("/")[0] for n in load_file(path) if "/" in n} == {"ema", "optim"}


TYPOS: dict[str, tuple[dict[str, Any], str]] = {
    "teacher": ({"recipe": {"distill": {"teacher": "deit_tiny_patch16_244"}}}, "deit_tiny_patch16_224"),
    "no length": ({"recipe": {"schedule": {"total_steps": None, "warmup_steps": None}}}, "how long to train"),
    "option without effect": ({"recipe": {"schedule": {"decay_rate": 0.5}}},
                              "decay_rate has no effect on the schedule cosine"),
    "average": ({"recipe": {"ema": {"decay": 0.5}}}, "recipe.ema.decay has no effect without a moving average"),
    "odd batch": ({"recipe": {"batch": 5, "augment": {"mixup": 0.5}}}, "recipe.batch must be even, found 5")}


@pytest.mark.parametrize("typo", TYPOS)
def test_typos(typo: str) -> None:
    change, words = TYPOS[typo]
    with pytest.raises(ConfigError, match=words):
        check_experiment(experiment(change))


@pytest.mark.parametrize(("change", "kind", "words"), [
    ({"data": {"synthetic": {"classes": 6}}}, DataError, "the data have 6 classes, the model predicts 4"),
    ({"recipe": {"schedule": {"warmup_steps": 10}}}, ConfigError,
     "warm-up of 10 updates leaves nothing of a training of 10"),
    ({"recipe": {"device": "gpu"}}, ConfigError, "recipe.device='gpu' is no device"),
    ({"recipe": {"extra": {"bogus": 1}}}, ConfigError, "timm cannot make the optimiser sgd with these arguments.*bogus")])
def test_what_only_the_model_or_machine_shows(change: dict[str, Any], kind: type[AlgorithmError], words: str,
                                              tmp_path: Path) -> None:
    with pytest.raises(kind, match=words):
        trained(tmp_path, change)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("progress", [1, 1000])
def test_a_training_that_diverges_ends_with_its_last_finite_checkpoint(progress: int, tmp_path: Path) -> None:
    """Noticed where the loss is read, or else where weights would be saved."""
    order: Experiment = experiment({"recipe": {"optim": {"lr": 1e30}, "progress_every": progress,
                                               "schedule": {"warmup_steps": 6, "warmup_lr": 1e-3}, "checkpoint_every": 1}})
    with pytest.raises(NonFiniteLossError, match=r"lower recipe\.optim\.lr") as caught:
        train(order, tmp_path)
    assert 1 <= caught.value.step <= 10
    assert all(bool(torch.isfinite(t).all()) for t in weights(tmp_path).values())
