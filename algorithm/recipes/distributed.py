"""Data parallel training by torchrun: who this process is, what all of them agree on, and what happens when one dies."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from algorithm.errors import AlgorithmError, ConfigError
from algorithm.schema import one_line

TIMEOUT = timedelta(minutes=5)   # how long a process waits for one that says nothing; one that ends is noticed at once
_SIGNS = ("gloo", "nccl", "connection", "peer", "timed out", "timeout", "store", "process group", "socket")


class DistributedError(AlgorithmError):
    """Another process of the training is gone or does not answer."""


@dataclass(frozen=True)
class World:
    """This process among all: rank 0..size-1, and its number on its own machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this one logs and saves."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; every one gets the same bits."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def same(self, tensor: Tensor) -> Tensor:
        """Process 0's values on every process, in place."""
        if self.size > 1:
            dist.broadcast(tensor, 0)
        return tensor

    def shared(self, value: Any) -> Any:
        """Process 0's plain value on every process."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, 0)
        return box[0]


def find_world() -> World:
    """What torchrun says in the environment; one process without it. Raises ConfigError."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {n: os.environ[n] for n in names if n in os.environ}
    if "WORLD_SIZE" not in given or given["WORLD_SIZE"] == "1":
        return World()
    missing = [n for n in (*names, "MASTER_ADDR", "MASTER_PORT") if n not in os.environ]
    if missing or not all(v.isdigit() for v in given.values()):
        raise ConfigError(f"the environment names a training of several processes, but {missing[0] if missing else given} "
                          f"is {'missing' if missing else 'no number'}: start it with torchrun, or unset WORLD_SIZE")
    rank, size, local = (int(given[n]) for n in names)
    if not 0 <= rank < size:
        raise ConfigError(f"RANK={rank} is outside 0..{size - 1} (WORLD_SIZE={size}): start it with torchrun")
    return World(rank, size, local)


@contextmanager
def joined(world: World, device: torch.device, last_checkpoint: Any = None) -> Iterator[None]:
    """Within it the processes can talk: nccl between GPUs, gloo between CPUs.

    A process that ends or falls silent makes every other one leave with a DistributedError, at once or after TIMEOUT.
    last_checkpoint: called then, for what to say of what is saved. A model wrapped in DistributedDataParallel must not
    outlive it: the wrapper would end the group with Python's lock in hand, waiting for a thread of gloo's that wants it.
    """
    if world.size == 1:
        yield
        return
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=world.rank, world_size=world.size,
                                timeout=TIMEOUT, device_id=device if device.type == "cuda" else None)
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)     # they may hold a wrapped model
        gc.collect()
        if not isinstance(error, RuntimeError) or not (
                isinstance(error, dist.DistError) or any(s in str(error).lower() for s in _SIGNS)):
            raise
        saved = last_checkpoint() if last_checkpoint else None
        raise DistributedError(f"process {world.rank} of {world.size}: another process ended or does not answer "
                               f"({one_line(error, 90)}); saved up to {saved or 'nothing'}: see what ended it, then start "
                               "the same command again, it goes on from there") from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
