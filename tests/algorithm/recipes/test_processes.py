"""Several processes make the updates of one that accumulates as many passes, count every image once, and end together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithm.errors import AlgorithmError
from algorithm.recipes.checkpoint import load_checkpoint, newest
from tests.algorithm.recipes.forks import together
from tests.algorithm.recipes.small import Tree, merged, run, tensors

LENGTH: Tree = {"recipe": {"batch": 4, "schedule": {"epochs": None, "total_steps": 20, "warmup_steps": 2},
                           "optim": {"opt": "momentum", "lr": 0.02, "momentum": 0.9}, "augment": {"mixup": 0.8}}}
SLICED: Tree = {"plan": {"enable_backward_config": True, "n_bias_update": "all", "n_weight_update": 1,
                         "weight_update_ratio": 0.25}}


def work(tree: Tree, folder: Path, die_at: int = 0) -> Callable[[int], None]:
    """A training as work of a rank, which leaves its figures, or its error, in `<folder>.<rank>.json`. Rank 1 dies when
    it is asked for the `die_at`-th time whether to stop."""
    def train(rank: int) -> None:
        asked = 0

        def stop() -> None:
            nonlocal asked
            asked += 1
            if asked == die_at and rank == 1:
                os._exit(3)
        said: list[Any]
        try:
            found = run(folder, tree, stop=stop).evaluation
            said = [found.count, found.loss, found.top1]
        except AlgorithmError as error:
            said = [type(error).__name__, str(error)]
            raise
        finally:
            folder.with_suffix(f".{rank}.json").write_text(json.dumps(said))
    return train


def said(folder: Path, rank: int) -> Any:
    return json.loads(folder.with_suffix(f".{rank}.json").read_text())


@pytest.mark.parametrize("plan", [{}, SLICED], ids=["whole", "sliced"])
def test_two_processes_train_as_one_that_accumulates(plan: Tree, tmp_path: Path) -> None:
    one = run(tmp_path / "one", merged(LENGTH, plan, {"recipe": {"accum_steps": 2}}))
    assert together(work(merged(LENGTH, plan), tmp_path / "two")) == [0, 0]
    ours, theirs = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert ours.keys() == theirs.keys()
    weights = [n for n in ours if "/" not in n]
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in weights) <= 1e-6
    start = tensors_of_start(tmp_path, plan)
    assert max(float((ours[n] - start[n]).abs().max()) for n in weights) > 1e-3      # they trained at all
    figures = [said(tmp_path / "two", rank) for rank in (0, 1)]
    assert figures[0] == figures[1] and figures[0][0] == 15 == one.evaluation.count  # an odd number, each image once
    assert figures[0][1] == pytest.approx(one.evaluation.loss, abs=1e-5)


def tensors_of_start(folder: Path, plan: Tree) -> dict[str, torch.Tensor]:
    from algorithm.models import build_model
    from tests.algorithm.recipes.small import experiment
    return dict(build_model(experiment(plan).model).state_dict())


def test_a_process_that_dies_ends_the_others_and_leaves_the_checkpoint_whole(tmp_path: Path) -> None:
    folder = tmp_path / "two"
    assert together(work(merged(LENGTH, {"recipe": {"checkpoint_every": 3}}), folder, die_at=8)) == [1, 3]
    kind, text = said(folder, 0)
    assert kind == "DistributedError" and text.startswith("process 0 of 2: another process ended or does not answer")
    path = newest(folder)
    assert path is not None and load_checkpoint(path).update == 6 and str(path) in text
