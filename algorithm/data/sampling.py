"""Which images make up a micro-batch, and the random numbers that an image is changed with: pure functions, no state."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from algorithm.errors import DataError


class Draw(NamedTuple):
    """One use of an image: its position in the stream, and when it comes. Its random changes depend on nothing else.

    turn: how often the epoch has gone through all images before (above 0 only where they are fewer than an update's).
    """

    image: int
    epoch: int
    turn: int


@dataclass(frozen=True)
class StepSampler:
    """The images of every update: a function of (seed, update, micro-batch), so that a resume needs only the update.

    images: how many there are. batch: images of a micro-batch. accum: micro-batches a rank adds up in an update.
    Pass k of rank r is micro-batch m = k * world + r of its update and takes the positions
    [(s * accum * world + m) * batch, + batch) of its epoch's order, s counted within the epoch. So two ranks see the same
    micro-batches as one with twice the accum. What is left of an epoch after its last whole update is not used in it;
    where there are fewer images than an update takes, an epoch is one update, and it goes through them again.
    """

    images: int
    batch: int
    accum: int = 1
    rank: int = 0
    world: int = 1
    seed: int = 0
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("images", "batch", "accum", "world"):
            if getattr(self, name) < 1:
                raise DataError(f"a sampler needs {name} of 1 or more, found {getattr(self, name)}")
        if not 0 <= self.rank < self.world:
            raise DataError(f"rank {self.rank} is outside 0..{self.world - 1}")

    @property
    def update_images(self) -> int:
        """Images of an update over all ranks."""
        return self.batch * self.accum * self.world

    @property
    def updates(self) -> int:
        """Updates of an epoch."""
        return max(1, self.images // self.update_images)

    def epoch(self, update: int) -> int:
        """The epoch that an update (0-based, counted from the first) is in."""
        return update // self.updates

    def draws(self, update: int, k: int) -> list[Draw]:
        """The images of this rank's pass k of an update."""
        epoch, s = divmod(update, self.updates)
        first = (s * self.accum * self.world + k * self.world + self.rank) * self.batch
        out = []
        for position in range(first, first + self.batch):
            turn, place = divmod(position, self.images)
            out.append(Draw(int(self._order(epoch, turn)[place]), epoch, turn))
        return out

    def _order(self, epoch: int, turn: int) -> np.ndarray:
        if (epoch, turn) not in self._orders:
            for past in [key for key in self._orders if key[0] != epoch]:
                del self._orders[past]
            self._orders[epoch, turn] = np.random.default_rng([self.seed, epoch, turn]).permutation(self.images)
        return self._orders[epoch, turn]


_NUMPY: Any = np.random  # the module as a generator: timm's RandAugment draws from it


@contextlib.contextmanager
def seeded(seed: int, draw: Draw) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's (CPU) global generators at a state that (seed, draw) alone decides; then as before."""
    before = random.getstate(), _NUMPY.get_state(), torch.default_generator.get_state()
    words = np.random.SeedSequence([seed, draw.epoch, draw.turn, draw.image]).generate_state(4, np.uint32)
    random.seed(int(words[0]))
    _NUMPY.seed(int(words[1]))
    torch.default_generator.manual_seed(int(words[2]) << 32 | int(words[3]))
    try:
        yield
    finally:
        random.setstate(before[0])
        _NUMPY.set_state(before[1])
        torch.default_generator.set_state(before[2])
