"""Batches: the same pixels whatever reads them, every held-out image once, workers that fail, broken images counted."""

from __future__ import annotations

import os
import pickle
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from algorithm.data import DataConfig, Stream, open_streams
from algorithm.data.config import SyntheticConfig
from algorithm.data.loading import StepSampler, _loaded, _Reader, eval_batches, share_broken, train_batches
from algorithm.data.sampling import Draw, seeded
from algorithm.data.streams import SyntheticStream
from algorithm.data.transforms import eval_transform, train_transform
from algorithm.errors import DataError
from algorithm.recipes.config import AugmentConfig

HALF = (0.5, 0.5, 0.5)
STRONG = train_transform(AugmentConfig(aa="rand-m9-mstd0.5-inc1", reprob=0.5), 16, HALF, HALF)  # draws from all generators
PLAIN = eval_transform(16, HALF, HALF)
NUMPY: Any = np.random  # the global generator, which timm draws from
Batch = tuple[int, int, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def stream() -> Stream:
    return SyntheticStream(SyntheticConfig(classes=5, images=8, held_out=5, size=16), 0)


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(x[:2] == y[:2] and torch.equal(x[2], y[2]) and torch.equal(x[3], y[3])
                                    for x, y in zip(a, b, strict=True))


def test_the_same_pixels_whatever_the_workers_and_where_it_begins(stream: Stream) -> None:
    sampler = StepSampler(len(stream), batch=4, accum=2, seed=3)
    whole = list(train_batches(stream, STRONG, sampler, 0, last_update=12))
    assert [(u, k) for u, k, _, _ in whole] == [(u, k) for u in range(12) for k in range(2)]
    assert whole[0][2].shape == (4, 3, 16, 16) and whole[0][2].dtype == torch.float32 and whole[0][3].dtype == torch.int64
    random.seed(9)
    torch.manual_seed(9)
    assert same(whole[14:], list(train_batches(stream, STRONG, sampler, 7, workers=2, prefetch=3, last_update=12)))
    assert same(whole[14:], list(train_batches(stream, STRONG, sampler, 7, last_update=12)))
    other = StepSampler(len(stream), batch=4, accum=2, seed=4)
    assert not same(whole, list(train_batches(stream, STRONG, other, 0, last_update=12)))


def test_an_image_changes_from_epoch_to_epoch(stream: Stream) -> None:
    sampler = StepSampler(len(stream), batch=40)
    first, second = (images[np.argsort([d.image for d in sampler.draws(u, 0)])]
                     for u, _, images, _ in train_batches(stream, STRONG, sampler, last_update=2))
    assert sum(torch.equal(a, b) for a, b in zip(first, second, strict=True)) == 0


def test_two_ranks_see_what_one_process_accumulates(stream: Stream) -> None:
    alone = list(train_batches(stream, STRONG, StepSampler(len(stream), 3, accum=4, seed=1), 2, last_update=5))
    ranks = [iter(train_batches(stream, STRONG, StepSampler(len(stream), 3, 2, rank, 2, seed=1), 2, last_update=5))
             for rank in range(2)]
    shared = [batch for _ in range(3 * 2) for batch in (next(ranks[0]), next(ranks[1]))]
    assert all(torch.equal(a[2], b[2]) and torch.equal(a[3], b[3]) for a, b in zip(alone, shared, strict=True))


def test_an_epoch_takes_no_image_twice_and_drops_its_incomplete_update() -> None:
    sampler = StepSampler(images=23, batch=2, accum=2, rank=1, world=2)
    assert sampler.updates == 2 and [sampler.epoch(u) for u in range(5)] == [0, 0, 1, 1, 2]
    ranks = [StepSampler(23, 2, 2, rank, 2) for rank in range(2)]
    for epoch in range(3):
        draws = [d for s in range(2) for k in range(2) for r in ranks for d in r.draws(epoch * 2 + s, k)]
        assert len({d.image for d in draws}) == 16 == len(draws) and {(d.epoch, d.turn) for d in draws} == {(epoch, 0)}
    assert ranks[0].draws(0, 0) != ranks[0].draws(2, 0)


def test_fewer_images_than_an_update_takes() -> None:
    sampler = StepSampler(images=3, batch=4, accum=2)
    draws = [d for k in range(2) for d in sampler.draws(5, k)]
    assert sampler.updates == 1 and sorted(Counter(d.image for d in draws).values()) == [2, 3, 3]
    assert len(set(draws)) == 8 and {d.epoch for d in draws} == {5}  # each use has random numbers of its own
    for update in range(50):
        sampler.draws(update, 1)
    assert len(sampler._orders) <= 3


def test_samplers_that_cannot_be() -> None:
    for wrong in ({"images": 0}, {"batch": 0}, {"accum": 0}):
        with pytest.raises(DataError, match="1 or more"):
            StepSampler(**{"images": 5, "batch": 1, **wrong})
    with pytest.raises(DataError, match=r"rank 2 is outside 0\.\.1"):
        StepSampler(5, 1, 1, 2, 2)


def test_seeding_leaves_the_generators_as_they_were() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(NUMPY.rand()), float(torch.rand(()))

    random.seed(1)
    NUMPY.seed(1)
    torch.manual_seed(1)
    expected = [drawn(), drawn()]
    random.seed(1)
    NUMPY.seed(1)
    torch.manual_seed(1)
    seen = [drawn()]
    with seeded(2**63 - 1, Draw(4, 5, 0)):
        inside = drawn()
    seen.append(drawn())
    assert seen == expected
    for other in (Draw(5, 5, 0), Draw(4, 6, 0), Draw(4, 5, 1)):
        with seeded(2**63 - 1, other):
            assert all(a != b for a, b in zip(inside, drawn(), strict=True))


def test_reading_does_not_touch_the_trainings_random_numbers(stream: Stream) -> None:
    for workers in (0, 1):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        list(train_batches(stream, STRONG, StepSampler(len(stream), 4), 0, workers, last_update=2))
        list(eval_batches(stream, PLAIN, 16, workers=workers))
        assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("count", "batch", "world", "workers"), [(25, 4, 1, 0), (25, 4, 2, 2), (25, 7, 3, 0), (2, 4, 3, 1)])
def test_every_held_out_image_once_over_all_ranks(count: int, batch: int, world: int, workers: int) -> None:
    _, test = open_streams(DataConfig(name="synthetic", images_per_class=1, test_images=None,
                                      synthetic=SyntheticConfig(classes=5, images=1, held_out=5, size=16)))
    test = test.choose(np.arange(count))
    seen: Counter[bytes] = Counter()
    for rank in range(world):
        batches = eval_batches(test, PLAIN, batch, rank, world, workers)
        for _ in range(2 if rank == 0 else 1):  # can be iterated again
            mine = [(image.numpy().tobytes(), int(n)) for images, labels in batches
                    for image, n in zip(images, labels, strict=True)]
        assert len(mine) == batches.images
        seen.update(pixels for pixels, _ in mine)
    expected = Counter(PLAIN(test[i][0]).numpy().tobytes() for i in range(count))
    assert seen == expected and set(seen.values()) == {1}


class Dying:
    """A transform whose process ends without a word."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        os._exit(3)


def test_a_worker_that_dies_is_reported_with_what_to_do(stream: Stream) -> None:
    with pytest.raises(DataError, match=r"the 1 processes that read synthetic failed .*recipe.workers.*shm-size") as caught:
        list(train_batches(stream, Dying(), StepSampler(len(stream), 4), workers=1, last_update=1))
    assert "\n" not in str(caught.value)


class Failing:
    """What torch's loader does when its workers fail."""

    num_workers = 2

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        raise self.error


@pytest.mark.parametrize("error", [
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
                 "out of shared memory. Please try to raise your shared memory limit."),
    RuntimeError("DataLoader timed out after 600 seconds"), RuntimeError("received 0 items of ancdata"),
    OSError(24, "Too many open files"), OSError(12, "Cannot allocate memory"),
    RuntimeError("Caught OSError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
                 "OSError: [Errno 24] Too many open files\n"),
])
def test_what_torch_says_of_failing_workers_becomes_one_line(error: Exception, stream: Stream) -> None:
    with pytest.raises(DataError, match=r"the 2 processes .*recipe.workers") as caught:
        list(_loaded(cast(Any, Failing(error)), stream))
    assert "\n" not in str(caught.value) and str(error).strip().splitlines()[-1][:80] in str(caught.value)


def test_a_fault_of_the_program_stays_what_it_is(stream: Stream) -> None:
    mine = RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback:\nRuntimeError: my own\n")
    with pytest.raises(RuntimeError, match="my own"):
        list(_loaded(cast(Any, Failing(mine)), stream))


def broken_folder(root: Path, broken: int) -> DataConfig:
    for split, count in (("train", 6), ("val", 4)):
        for c, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                path = root / split / name / f"{i}.png"
                Image.new("RGB", (8, 8), (10 * i + 5, 100 * c, 0)).save(path)
                if i < broken:
                    path.write_bytes(path.read_bytes()[:40])
    return DataConfig(name="imagefolder", data_root=str(root), images_per_class=None, test_images=None, max_broken=2)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_counted_over_all_workers(tmp_path: Path, workers: int) -> None:
    said: list[str] = []
    train, test = open_streams(broken_folder(tmp_path, 1), said.append)
    batches = list(train_batches(train, PLAIN, StepSampler(12, 4), 0, workers, last_update=6))
    assert all(len(labels) == 4 for *_, labels in batches) and len(train.broken.found) == 2 == len(said)
    held = eval_batches(test, PLAIN, 2, workers=workers)
    assert sorted(torch.cat([labels for _, labels in held]).tolist()) == [0] * 3 + [1] * 3
    assert len(test.broken.found) == 2 and len(said) == 4 and "left out" in said[-1]
    for path in [*list((tmp_path / "train/cat").iterdir())[:3], tmp_path / "val/cat/1.png"]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"images of .* are corrupt or unreadable, data.max_broken allows 2"):
        list(train_batches(train, PLAIN, StepSampler(12, 4), 0, workers, last_update=6))
    with pytest.raises(DataError, match=r"are corrupt or unreadable, data.max_broken allows 2"):
        list(held)


def test_a_reader_travels_to_processes_that_share_nothing(tmp_path: Path) -> None:
    train, _ = open_streams(broken_folder(tmp_path, 1), lambda _: None)  # a warner that does not pickle
    reader = _Reader(train, STRONG, seed=4)
    asked = ((0, 0), StepSampler(12, 12).draws(0, 0))
    here, there = reader[asked], pickle.loads(pickle.dumps(reader))[asked]
    assert torch.equal(here[1], there[1]) and torch.equal(here[2], there[2]) and here[3] == there[3] and len(here[3]) >= 2


def test_ranks_tell_each_other_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, _ = open_streams(broken_folder(tmp_path, 2), lambda _: None)
    list(train_batches(train, PLAIN, StepSampler(12, 1, rank=0, world=12), last_update=1))
    share_broken(train)  # alone: nothing to tell
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        share_broken(train)
        others = {"a.png": "x", "b.png": "y", "c.png": "z"}
        monkeypatch.setattr(torch.distributed, "all_gather_object", lambda out, mine: out.__setitem__(0, {**mine, **others}))
        with pytest.raises(DataError, match=r"data.max_broken allows 2: .*a\.png"):
            share_broken(train)
    finally:
        torch.distributed.destroy_process_group()
