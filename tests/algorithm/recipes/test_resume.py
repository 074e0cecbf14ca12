"""A training that was killed, stopped or damaged goes on to the same bits; what is another's is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithm.errors import CheckpointError, ConfigError, NonFiniteLossError, PlanError
from algorithm.models import ModelConfig, build_model
from algorithm.recipes.checkpoint import BEST, FOLDER, LATEST, SUFFIX, load_checkpoint, newest
from algorithm.recipes.training import Training
from tests.algorithm.recipes.small import ALL, Tree, experiment, run, same, tensors

UPDATES = 12    # 24 images, batches of 4, two epochs
SETTINGS: dict[str, Tree] = {
    "plain": {"recipe": {"checkpoint_every": 4}}, "all": {**ALL, "recipe": {**ALL["recipe"], "checkpoint_every": 3}},
    "dynamic": {**ALL, "recipe": {**ALL["recipe"], "checkpoint_every": 4, "dynamic": {"every": 3}}}}


class Killed(BaseException):
    """What nothing catches; the process is gone."""


def kill_at(moments: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The training dies in the middle of these updates, one after the other."""
    step: Callable[..., Any] = Training.step

    def dying(self: Training, update: int, watch: Any = None) -> Any:
        made = step(self, update, watch)
        if moments and update == moments[0]:
            moments.pop(0)
            raise Killed
        return made
    monkeypatch.setattr(Training, "step", dying)


@pytest.mark.parametrize("name", SETTINGS)
def test_killed_at_five_moments_it_ends_with_the_same_bits(name: str, tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole", SETTINGS[name])
    moments = sorted(np.random.default_rng(7).choice(UPDATES, 5, replace=False).tolist())
    kill_at(moments, monkeypatch)
    outcome = None
    while outcome is None:
        try:
            outcome = run(tmp_path / "killed", SETTINGS[name])
        except Killed:
            continue
    assert moments == [] and outcome.updates == UPDATES
    assert same(tensors(tmp_path / "killed"), tensors(tmp_path / "whole"))
    assert outcome.evaluation.loss == whole.evaluation.loss and outcome.plan == whole.plan
    assert (outcome.ema_evaluation is None) is (name == "plain")


def test_a_stop_is_between_two_updates_and_saved(tmp_path: Path) -> None:
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 5:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a", ALL, stop=stop)
    path = newest(tmp_path / "a")
    assert path is not None and load_checkpoint(path).update == 5
    run(tmp_path / "a", ALL)
    run(tmp_path / "b", ALL)
    assert same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))


def test_what_is_kept(tmp_path: Path) -> None:
    run(tmp_path, {"recipe": {"checkpoint_every": 1, "keep": 2, "eval_every": 4}})
    names = sorted(p.name for p in (tmp_path / FOLDER).iterdir())
    assert names == [f"{BEST}{SUFFIX}", f"{LATEST}{SUFFIX}", f"step-00000011{SUFFIX}", f"step-00000012{SUFFIX}"]
    best = load_checkpoint(tmp_path / FOLDER / f"{BEST}{SUFFIX}")
    assert best.update % 4 == 0 and best.classes == ["class_0", "class_1", "class_2"]
    assert load_checkpoint(tmp_path / FOLDER / f"{LATEST}{SUFFIX}").update == 12


@pytest.mark.parametrize("cut", [0, 7, 100, 2000])
def test_a_damaged_newest_is_set_aside_and_the_one_before_taken(cut: int, tmp_path: Path) -> None:
    run(tmp_path, {"recipe": {"checkpoint_every": 4}})
    whole = tensors(tmp_path)
    path = newest(tmp_path)
    assert path is not None
    path.write_bytes(path.read_bytes()[:cut])
    said: list[str] = []

    class Console:
        say = staticmethod(said.append)

        def __getattr__(self, name: str) -> Any:
            return lambda *args, **values: None
    run(tmp_path, {"recipe": {"checkpoint_every": 4}}, console=Console())
    assert any("is damaged" in text and "step-00000012.safetensors.damaged" in text for text in said)
    assert same(tensors(tmp_path), whole)


@pytest.mark.parametrize("change, text", [
    ({"recipe": {"batch": 2}}, "recipe.batch: 4 there, 2 here"),
    ({"model": {"num_classes": 5}}, "model.num_classes: 3 there"),
    ({"plan": {"enable_backward_config": True, "n_bias_update": 1}}, "plan.enable_backward_config: False there"),
    ({"recipe": {"schedule": {"epochs": 3}}}, "recipe.schedule.epochs: 2 there, 3 here")])
def test_a_checkpoint_of_another_training_is_refused(change: Tree, text: str, tmp_path: Path) -> None:
    run(tmp_path, {"recipe": {"schedule": {"epochs": 2}}})
    with pytest.raises(CheckpointError, match=text):
        run(tmp_path, change)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from algorithm.training import checkpoint
    written = checkpoint.save_file
    calls = 0

    def full(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            args[1].write_bytes(b"half")
            raise OSError(28, "No space left on device")
        written(*args)
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left on device"):
        run(tmp_path, {"recipe": {"checkpoint_every": 3}})
    path = newest(tmp_path)
    assert path is not None and load_checkpoint(path).update == 6 and not list((tmp_path / FOLDER).glob(".*"))


def test_a_checkpoint_is_weights_for_this_program_and_for_timm(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import load_file

    from algorithm.training.checkpoint import export_timm
    gram = {"model": {"gram": {"enabled": True, "rank": 2}}}
    run(tmp_path, gram)
    path = newest(tmp_path)
    made = tensors(tmp_path)
    model = build_model(ModelConfig(**{**experiment(gram).model.model_dump(), "weights": str(path)}))
    state = model.state_dict()
    assert all(torch.equal(state[n], made[n]) for n in state) and bool(made["blocks.0.attn.gram_b"].any())
    run(tmp_path / "plain")
    config = {**experiment().model.model_dump(), "weights": str(newest(tmp_path / "plain"))}
    export_timm(build_model(ModelConfig(**config)), tmp_path / "timm.safetensors")
    plain = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, num_classes=3, depth=2, embed_dim=16,
                              num_heads=2)
    plain.load_state_dict(load_file(tmp_path / "timm.safetensors"))     # strictly


def test_what_cannot_go_on_says_why(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"lower recipe\.optim\.lr"):
        run(tmp_path / "a", {"recipe": {"optim": {"lr": 1e30}, "progress_every": 1}})
    assert newest(tmp_path / "a") is None
    with pytest.raises(ConfigError, match=r"'adamv' is no optimiser of timm .nearest known: 'adam"):
        run(tmp_path / "b", {"recipe": {"optim": {"opt": "adamv"}}})
    with pytest.raises(ConfigError, match=r"'cosin' is no schedule of timm .nearest known: 'cosine'"):
        run(tmp_path / "b", {"recipe": {"schedule": {"sched": "cosin"}}})
    with pytest.raises(PlanError, match="the plan trains nothing"):
        run(tmp_path / "b", {"plan": {"enable_backward_config": True, "n_bias_update": 0, "vit_layer_types": []}})
    with pytest.raises(ConfigError, match="must be even"):
        run(tmp_path / "b", {"recipe": {"batch": 3, "augment": {"mixup": 0.5}}})
