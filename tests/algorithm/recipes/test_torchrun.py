"""Several processes with an average or chosen columns, a silent one, a stop of one; and torchrun itself."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from algorithm.recipes import distributed
from algorithm.recipes.checkpoint import newest
from algorithm.recipes.distributed import DistributedError
from algorithm.recipes.training import Training
from tests.algorithm.recipes.forks import (
    RICH,
    SLICED,
    beside,
    die,
    differing,
    end_of,
    together,
    trained,
    weights,
)
from tests.algorithm.recipes.small import tensors

LONG: dict[str, Any] = {"recipe": {"schedule": {"total_steps": 20}, "checkpoint_every": 10, "batch_eval": 3}}
TWO_PASSES: dict[str, Any] = {"recipe": {"accum_steps": 2}}
FOUR_PASSES: dict[str, Any] = {"recipe": {"accum_steps": 4}}
KINDS: dict[str, tuple[tuple[dict[str, Any], ...], dict[str, Any]]] = {     # of both; what one process does instead of two
    "all of it": ((RICH, SLICED, LONG, {"recipe": {"optim": {"opt": "momentum"}}}), FOUR_PASSES),
    "chosen anew": ((LONG, SLICED, {"recipe": {"dynamic": {"every": 3}}}), TWO_PASSES)}


def told(folder: Path, *changes: dict[str, Any]) -> Callable[[int], None]:
    """A training as work of a rank, which leaves what it says of the held-out images in `<rank>.json`."""
    def work(rank: int) -> None:
        outcome = trained(folder, *changes)
        found = outcome.evaluation
        text = json.dumps([found.count, found.confusion.tolist(), found.top5, outcome.plan.to_dict()])
        (folder / f"{rank}.json").write_text(text)
    return work


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_like_one_that_accumulates(kind: str, tmp_path: Path) -> None:
    both, alone = KINDS[kind]
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    assert end_of(beside(lambda: told(one, *both, alone)(0))) == 0
    assert together(told(two, *both)) == [0, 0]
    for prefix in ("", "ema/"):
        mine, theirs = weights(two, prefix), weights(one, prefix)
        assert mine.keys() == theirs.keys()
        assert max((float((mine[n] - theirs[n]).abs().max()) for n in mine), default=0.0) <= 1e-6
    said = [json.loads((two / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert said[0] == said[1] and said[0][3] == json.loads((one / "0.json").read_text())[3]
    assert said[0][0] == 11 and sum(map(sum, said[0][1])) == 11    # held-out images, an odd number of them
    assert [sum(row) for row in said[0][1]] == [sum(row) for row in json.loads((one / "0.json").read_text())[1]]


def test_a_silent_process_is_waited_for_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=2))

    def silent(self: Training, update: int, k: int) -> Any:
        while not (tmp_path / "said").exists():
            time.sleep(0.05)
        die()

    def work(rank: int) -> None:
        if rank == 1:
            Training._pass = silent  # type: ignore[method-assign]
        try:
            trained(tmp_path)
        except DistributedError as error:
            (tmp_path / "said").write_text(str(error))
            raise SystemExit from None

    assert together(work) == [1, -signal.SIGKILL]
    assert "does not answer" in (tmp_path / "said").read_text()


@pytest.mark.parametrize("dies", [False, True], ids=["whole", "dead"])
def test_no_wrapper_outlives_the_group(dies: bool, tmp_path: Path) -> None:
    """It would end the group with Python's lock in hand while gloo's thread waits for that: now and then, for ever."""
    def work(rank: int) -> None:
        destroy = distributed.dist.destroy_process_group

        def ended() -> None:
            left = sum(type(o) is nn.parallel.DistributedDataParallel for o in gc.get_objects())
            (tmp_path / f"left-{rank}").write_text(str(left))
            destroy()
        distributed.dist.destroy_process_group = ended
        asked = 0

        def stop() -> None:
            nonlocal asked
            asked += 1
            if dies and rank == 1 and asked == 3:
                die()
        trained(tmp_path, stop=stop)

    assert together(work) == ([1, -signal.SIGKILL] if dies else [0, 0])
    assert [p.read_text() for p in sorted(tmp_path.glob("left-*"))] == ["0"] * (1 if dies else 2)


def test_a_stop_of_one_process_stops_all_after_the_same_update(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        asked = 0

        def stop() -> None:
            nonlocal asked
            asked += 1
            if rank == 1 and asked == 5:
                raise KeyboardInterrupt
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, stop=stop)

    assert together(work) == [0, 0]
    assert newest(tmp_path) == tmp_path / "checkpoints/step-00000005.safetensors"
    both = [together(lambda rank, folder=folder: trained(folder)) for folder in (tmp_path, tmp_path / "undisturbed")]
    assert both == [[0, 0], [0, 0]] and differing(tensors(tmp_path), tensors(tmp_path / "undisturbed")) == []


def test_torchrun(tmp_path: Path) -> None:
    """The command itself; its training is that of one process that accumulates."""
    argv = ["train", "--dataset", "synthetic", "--model", "vit_tiny_patch16_224", "--img-size", "16", "--num-classes", "4",
            "--batch-size", "4", "--opt", "sgd", "--lr", "0.05", "--threads", "1", "--output", str(tmp_path), "--no_wandb",
            "recipe.schedule.total_steps=20", "recipe.workers=0", "recipe.device=cpu", "model.patch_size=8",
            "model.extra={depth: 2, embed_dim: 16, num_heads: 2}", "data.synthetic.classes=4", "data.synthetic.images=8",
            "data.synthetic.held_out=3", "data.synthetic.size=16", "monitor.jsonl=false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ran = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
                          "algorithm", *argv, "--experiment", "two"], env=environment, capture_output=True, text=True,
                         timeout=300)
    assert ran.returncode == 0, ran.stderr

    def alone() -> None:
        from algorithm.__main__ import main
        assert main([*argv, "--experiment", "one", "--grad-accum-steps", "2"]) == 0

    assert end_of(beside(alone)) == 0
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert one.keys() == two.keys() and max(float((one[n] - two[n]).abs().max()) for n in one) <= 1e-6
    assert json.loads((tmp_path / "two/summary.json").read_text())["updates"] == 20
