"""Several processes make the updates of one that accumulates as many passes, count every image once, and end together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from algorithm.recipes.checkpoint import load_checkpoint, newest
from tests.algorithm.recipes.small import Tree, merged, processes, run, tensors

LENGTH: Tree = {"recipe": {"batch": 4, "schedule": {"epochs": None, "total_steps": 20, "warmup_steps": 2},
                           "optim": {"opt": "momentum", "lr": 0.02, "momentum": 0.9}, "augment": {"mixup": 0.8}}}
SLICED: Tree = {"plan": {"enable_backward_config": True, "n_bias_update": "all", "n_weight_update": 1,
                         "weight_update_ratio": 0.25}}
CODE = """
import json, os, sys
from pathlib import Path
from tests.algorithm.recipes.small import run
tree, folder, die_at = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
asked = 0
def stop():
    global asked
    asked += 1
    if asked == die_at and os.environ["RANK"] == "1":
        os._exit(3)
try:
    outcome = run(folder, tree, stop=stop)
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(1)
print(json.dumps([outcome.evaluation.count, outcome.evaluation.loss, outcome.evaluation.top1]))
"""


def code(tree: Tree, folder: Path, die_at: int = 0) -> str:
    return f"import sys\nsys.argv = ['', {json.dumps(tree)!r}, {str(folder)!r}, '{die_at}']\n{CODE}"


@pytest.mark.parametrize("plan", [{}, SLICED], ids=["whole", "sliced"])
def test_two_processes_train_as_one_that_accumulates(plan: Tree, tmp_path: Path) -> None:
    one = run(tmp_path / "one", merged(LENGTH, plan, {"recipe": {"accum_steps": 2}}))
    both = processes(code(merged(LENGTH, plan), tmp_path / "two"))
    assert [p.returncode for p in both] == [0, 0], both
    ours, theirs = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert ours.keys() == theirs.keys()
    weights = [n for n in ours if "/" not in n]
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in weights) <= 1e-6
    start = tensors_of_start(tmp_path, plan)
    assert max(float((ours[n] - start[n]).abs().max()) for n in weights) > 1e-3      # they trained at all
    figures = [json.loads(p.stdout.splitlines()[-1]) for p in both]
    assert figures[0] == figures[1] and figures[0][0] == 15 == one.evaluation.count  # an odd number, each image once
    assert figures[0][1] == pytest.approx(one.evaluation.loss, abs=1e-5)


def tensors_of_start(folder: Path, plan: Tree) -> dict[str, torch.Tensor]:
    from algorithm.models import build_model
    from tests.algorithm.recipes.small import experiment
    return dict(build_model(experiment(plan).model).state_dict())


def test_a_process_that_dies_ends_the_others_and_leaves_the_checkpoint_whole(tmp_path: Path) -> None:
    both = processes(code(merged(LENGTH, {"recipe": {"checkpoint_every": 3}}), tmp_path, die_at=8))
    assert both[1].returncode == 3 and both[0].returncode == 1
    assert both[0].stdout.startswith("DistributedError process 0 of 2: another process ended or does not answer"), both[0]
    path = newest(tmp_path)
    assert path is not None and load_checkpoint(path).update == 6 and str(path) in both[0].stdout
