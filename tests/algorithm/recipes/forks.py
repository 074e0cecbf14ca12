"""Trainings of ten updates in several kinds, and processes that train and are killed."""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from algorithm.experiment import Experiment
from algorithm.recipes.checkpoint import load_checkpoint, newest
from algorithm.recipes.engine import Outcome, train
from tests.algorithm.recipes.small import Tree
from tests.algorithm.recipes.small import experiment as parsed

# 32 training images of 4 classes and 11 held-out ones, which no batch divides
BASE: Tree = {
    "model": {"num_classes": 4},
    "data": {"test_images": 11, "synthetic": {"classes": 4, "images": 8, "held_out": 3, "size": 16}},
    "recipe": {"device": "cpu", "checkpoint_every": 2, "drop_path": 0.1, "schedule": {"epochs": None, "total_steps": 10}}}
# the attention's matrices by a quarter of their columns, and the head
SLICED: Tree = {"plan": {"enable_backward_config": True, "n_bias_update": 1, "n_weight_update": 2,
                         "vit_layer_types": ["attention", "head"], "weight_update_ratio": 0.25}}
RICH: Tree = {"recipe": {"ema": {"enabled": True, "decay": 0.9, "warmup": True}, "accum_steps": 2,
                         "augment": {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "aa": "rand-m9-mstd0.5-inc1",
                                     "reprob": 0.25}}}
PATIENCE = 120      # seconds after which a process that hangs is ended, and fails its test


def experiment(*changes: Tree) -> Experiment:
    """BASE with layers over it."""
    return parsed(BASE, *changes)


def trained(folder: Path, *changes: Tree, stop: Callable[[], None] | None = None) -> Outcome:
    return train(experiment(*changes), folder, stop=stop)


def weights(folder: Path, prefix: str = "") -> dict[str, Tensor]:
    """Of the newest checkpoint: the model's, or with "ema/" the average's."""
    path = newest(folder)
    assert path is not None, folder
    return load_checkpoint(path).weights(prefix)


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """The names whose bits are not the same."""
    assert a.keys() == b.keys()
    return [n for n in a if not torch.equal(a[n], b[n])]


def beside(work: Callable[[], object]) -> int:
    """Start a process, a copy of this one, that does this and nothing more; its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        torch.set_num_threads(1)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end_of(child: int) -> int:
    """How a process ended: its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def together(work: Callable[[int], object], size: int = 2) -> list[int]:
    """work(rank) in `size` processes that find each other as torchrun's do; how they ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def as_rank(rank: int) -> Callable[[], object]:
        def run() -> object:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1",
                              MASTER_PORT=str(port))
            return work(rank)
        return run

    return [end_of(child) for child in [beside(as_rank(rank)) for rank in range(size)]]
