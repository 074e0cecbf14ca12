"""Batches of images for training and evaluation, read by worker processes or in this one: the same pixels either way.

    sampler = StepSampler(len(train), batch=128, accum=2, seed=0)
    for update, k, images, labels in train_batches(train, transform, sampler, first_update=0, last_update=1000): ...
    for images, labels in eval_batches(held_out, transform, batch=256): ...
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from algorithm.data.broken import Notes
from algorithm.data.sampling import Draw, StepSampler, seeded
from algorithm.data.streams import Stream
from algorithm.data.transforms import Transform
from algorithm.errors import AlgorithmError, DataError

__all__ = ["EvalBatches", "StepSampler", "eval_batches", "share_broken", "train_batches"]

PATIENCE = 600.0  # seconds that a batch of worker processes may take; a worker that cannot send its batch says nothing
Loaded = tuple[Any, torch.Tensor, torch.Tensor, Notes]  # what was asked for, images, labels, broken images met


def train_batches(stream: Stream, transform: Transform, sampler: StepSampler, first_update: int = 0, workers: int = 0,
                  pin: bool = False, prefetch: int = 2, last_update: int | None = None,
                  ) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """(update, k, images (B, 3, H, W) float32, labels (B,) int64) of this rank, from `first_update` on, in order.

    Ends before `last_update` (None: never). The pixels are a function of the sampler's seed and the image's draw, whatever
    the workers, ranks and first_update. workers: processes that live as long as the iterator; 0 = this process. pin: page-
    locked memory, where there is CUDA. prefetch: batches ahead, a worker. A broken image is replaced by the next readable
    one of its class and counted in `stream.broken`. Raises DataError: too many broken images, a worker that dies.
    """
    def asked() -> Iterator[tuple[tuple[int, int], list[Draw]]]:
        update = first_update
        while last_update is None or update < last_update:
            for k in range(sampler.accum):
                yield (update, k), sampler.draws(update, k)
            update += 1

    loader = _loader(_Reader(stream, transform, sampler.seed), asked(), workers, pin, prefetch)
    for (update, k), images, labels in _loaded(loader, stream):
        yield update, k, images, labels


class EvalBatches:
    """(images (B, 3, H, W) float32, labels (B,) int64) of this rank's share of a stream, each image once over all ranks.

    Rank r takes images r, r + world, ...: no padding, so the ranks' counts may differ by one, and a rank may have none. A
    broken image is left out and counted in `stream.broken`. Can be iterated again; its worker processes live as long as it.
    """

    def __init__(self, stream: Stream, transform: Transform, batch: int, rank: int = 0, world: int = 1, workers: int = 0,
                 pin: bool = False, prefetch: int = 2) -> None:
        mine = range(rank, len(stream), world)
        asked = [(None, list(mine[k:k + batch])) for k in range(0, len(mine), batch)]
        self.stream, self.images = stream, len(mine)
        self._loader = _loader(_Reader(stream, transform, None), asked, min(workers, len(asked)), pin, prefetch)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _, images, labels in _loaded(self._loader, self.stream):
            if len(labels):  # not where all of them are broken
                yield images, labels


eval_batches = EvalBatches


def share_broken(stream: Stream) -> None:
    """Give every rank what the others found broken. All ranks of torch.distributed must call it, at the same point.

    Raises DataError, on all of them, where they together found more than `stream.broken.limit`.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, stream.broken.found)
    stream.broken.add_all([(path, reason, "another rank met it") for there in found for path, reason in there.items()])


class _Refused(NamedTuple):
    """What a worker refuses: an error that travels as its text."""

    message: str


class _Reader(TorchDataset[Any]):
    """(what, draws or positions) -> (what, images, labels, broken images met): one whole batch. seed None: evaluation."""

    def __init__(self, stream: Stream, transform: Transform, seed: int | None) -> None:
        self.stream, self.transform, self.seed = stream, transform, seed

    def __getitem__(self, asked: tuple[Any, list[Any]]) -> Loaded | _Refused:
        what, wanted = asked
        images: list[torch.Tensor] = []
        labels: list[int] = []
        notes: Notes = []
        try:
            for one in wanted:
                image, label, met = self._read(one)
                notes += met
                if image is not None:
                    images.append(image)
                    labels.append(label)
        except AlgorithmError as error:
            return _Refused(str(error))
        return what, torch.stack(images) if images else torch.empty(0), torch.tensor(labels, dtype=torch.int64), notes

    def _read(self, one: Any) -> tuple[torch.Tensor | None, int, Notes]:
        if self.seed is None:
            _, image, notes = self.stream.first_readable((one,), limit=1)
            return None if image is None else self.transform(image), int(self.stream.labels[one]), notes
        image, label, notes = self.stream.read(one.image)
        with seeded(self.seed, one):
            return self.transform(image), label, notes


def _loader(reader: _Reader, asked: Iterable[Any], workers: int, pin: bool, prefetch: int) -> DataLoader[Any]:
    return DataLoader(reader, batch_size=None, sampler=asked, collate_fn=_same, num_workers=workers,
                      prefetch_factor=prefetch if workers else None, persistent_workers=workers > 0,
                      timeout=PATIENCE if workers else 0,
                      pin_memory=pin and torch.cuda.is_available(), worker_init_fn=_in_worker,
                      generator=torch.Generator())  # its own: the training's numbers do not depend on who reads


def _same(loaded: Any) -> Any:
    return loaded


def _in_worker(_: int) -> None:
    """Ctrl-C is the training's to answer, and so is a SIGTERM, which torchrun sends to all of its processes: it wants
    batches up to the update that it stops after. A second one ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))


def _loaded(loader: DataLoader[Any], stream: Stream) -> Iterator[tuple[Any, torch.Tensor, torch.Tensor]]:
    """The batches; their broken images are counted here, in the one process that sees those of all workers."""
    try:
        for loaded in loader:
            if isinstance(loaded, _Refused):
                raise DataError(loaded.message)
            what, images, labels, notes = loaded
            stream.broken.add_all(notes)
            yield what, images, labels
    except (RuntimeError, OSError) as error:
        if loader.num_workers and any(symptom in str(error) for symptom in _SYMPTOMS):
            raise DataError(f"the {loader.num_workers} processes that read {stream.name} failed ({_last_line(error)}): "
                            "set recipe.workers lower (0 = read in the training process), or give the machine more memory, "
                            "shared memory (/dev/shm; in a container --shm-size) or open files (ulimit -n)") from error
        raise


def _last_line(error: Exception) -> str:
    """What went wrong; of an error that a worker met, whose text is a whole traceback."""
    return str(error).strip().splitlines()[-1][:200]


_SYMPTOMS = ("DataLoader worker (", "DataLoader timed out", "shared memory", "ancdata", "Too many open files",
             "Cannot allocate memory", "/torch_", "unable to open file", "unable to mmap")
