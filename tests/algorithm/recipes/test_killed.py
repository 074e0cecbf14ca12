"""A training that is killed goes on to the very bits of one that was not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import algorithm.recipes.checkpoint as checkpoint
import algorithm.recipes.training as training
import algorithm.training.checkpoint as files
from algorithm.recipes.checkpoint import newest
from algorithm.training.stopping import stop_between_steps
from tests.algorithm.recipes.forks import RICH, SLICED, beside, die, differing, end_of, trained
from tests.algorithm.recipes.small import tensors

MOMENTUM = {"recipe": {"optim": {"opt": "momentum", "lr": 0.05, "momentum": 0.9}}}
ADAMW = {"recipe": {"optim": {"opt": "adamw", "lr": 0.01, "weight_decay": 0.05}}}
KINDS: dict[str, tuple[dict[str, Any], ...]] = {
    "plain": (), "all of it": (MOMENTUM, RICH, SLICED)}


def counting(call: Callable[..., Any], at: int, before: bool) -> Callable[..., Any]:
    """The function, whose `at`-th call (from 1 on) kills the process before or after it."""
    calls = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if before and calls == at:
            die()
        result = call(*args, **options)
        if calls == at:
            die()
        return result
    return counted


# by name: whose function, which one, in which call, before or after it. The 10 updates make 5 checkpoints.
MOMENTS: dict[str, tuple[Any, str, int, bool]] = {
    "before the first checkpoint": (training.Training, "_pass", 2, True),
    "between gradients and update": (training.Training, "_pass", 7, False),
    "with a checkpoint written and not yet renamed": (files, "save_file", 3, False),
    "with a checkpoint that has no other name yet": (checkpoint, "_also_called", 5, True),
    "while evaluating": (training, "evaluate_batches", 1, True)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trainings that nothing disturbed."""
    folders = {kind: tmp_path_factory.mktemp("whole") for kind in KINDS}
    for kind, folder in folders.items():
        trained(folder, *KINDS[kind])
    return folders


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at(moment: str, kind: str, whole: dict[str, Path], tmp_path: Path) -> None:
    owner, name, at, before = MOMENTS[moment]

    def killed() -> None:
        setattr(owner, name, counting(getattr(owner, name), at, before))
        trained(tmp_path, *KINDS[kind])

    assert end_of(beside(killed)) == -signal.SIGKILL
    trained(tmp_path, *KINDS[kind])
    assert differing(tensors(tmp_path), tensors(whole[kind])) == []
    assert not list((tmp_path / "checkpoints").glob(".*"))      # what was half written is gone


@pytest.mark.parametrize("alias", ["latest", "best"])
def test_other_names_are_right_after_a_kill_before_they_are_given(alias: str, whole: dict[str, Path],
                                                                  tmp_path: Path) -> None:
    def killed() -> None:
        usual = checkpoint._also_called

        def kill(path: Path, name: Path) -> None:
            if name.stem == alias and path.stem == "step-00000004":
                die()
            usual(path, name)
        checkpoint._also_called = kill
        trained(tmp_path, *KINDS["all of it"])

    assert end_of(beside(killed)) == -signal.SIGKILL
    trained(tmp_path, *KINDS["all of it"])
    for name in ("latest", "best"):
        mine, theirs = (checkpoint.load_checkpoint(folder / f"checkpoints/{name}.safetensors")
                        for folder in (tmp_path, whole["all of it"]))
        assert (mine.update, mine.best) == (theirs.update, theirs.best), name
        assert differing(mine.tensors, theirs.tensors) == []


def test_every_start_makes_a_few_updates(whole: dict[str, Path], tmp_path: Path) -> None:
    """Killed again and again, always an update after a checkpoint."""
    def killed() -> None:
        training.Training._pass = counting(training.Training._pass, 2 * 3, True)  # type: ignore[method-assign]
        trained(tmp_path, *KINDS["all of it"])

    ends = [end_of(beside(killed)) for _ in range(5)]
    assert ends == [-signal.SIGKILL] * 4 + [0]
    assert differing(tensors(tmp_path), tensors(whole["all of it"])) == []


@pytest.mark.parametrize("criterion", ["gradient", "random"])
def test_killed_while_columns_are_chosen_anew(criterion: str, tmp_path: Path) -> None:
    """Between two choices, so that what was measured since the last one must be remembered."""
    kind = (ADAMW, SLICED, {"recipe": {"dynamic": {"every": 3, "criterion": criterion}}})

    def killed() -> None:
        training.Training._pass = counting(training.Training._pass, 5, False)  # type: ignore[method-assign]
        trained(tmp_path / "killed", *kind)

    assert end_of(beside(killed)) == -signal.SIGKILL
    killed_plan, plan = (trained(tmp_path / name, *kind).plan for name in ("killed", "whole"))
    assert killed_plan == plan
    assert differing(tensors(tmp_path / "killed"), tensors(tmp_path / "whole")) == []


def test_a_stop_saves_what_was_made(whole: dict[str, Path], tmp_path: Path) -> None:
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, *KINDS["all of it"], stop=stop)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.safetensors", "latest.safetensors", *(f"step-0000000{n}.safetensors" for n in (2, 4, 5))]
    trained(tmp_path, *KINDS["all of it"])
    assert differing(tensors(tmp_path), tensors(whole["all of it"])) == []


def test_a_sigterm_to_all_its_processes_is_a_stop(whole: dict[str, Path], tmp_path: Path) -> None:
    """As torchrun sends it: the processes that read images get it, too, and read on until the update is made."""
    def work() -> None:
        os.setsid()
        asked = 0
        with stop_between_steps() as check:
            def stop() -> None:
                nonlocal asked
                asked += 1
                if asked == 3:
                    os.killpg(0, signal.SIGTERM)
                    time.sleep(0.5)     # a worker that ended would be noticed here
                elif asked == 4:
                    check()
            with pytest.raises(KeyboardInterrupt):
                trained(tmp_path, *KINDS["all of it"], {"recipe": {"workers": 1}}, stop=stop)

    assert end_of(beside(work)) == 0
    assert newest(tmp_path) == tmp_path / "checkpoints/step-00000004.safetensors"
    trained(tmp_path, *KINDS["all of it"])
    assert differing(tensors(tmp_path), tensors(whole["all of it"])) == []


def test_the_seed_matters(whole: dict[str, Path], tmp_path: Path) -> None:
    """What the tests above compare is not the same anyway."""
    trained(tmp_path, *KINDS["all of it"], {"recipe": {"seed": 1}})
    assert len(differing(tensors(tmp_path), tensors(whole["all of it"]))) > 10
