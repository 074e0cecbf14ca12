"""Images as uint8 arrays with labels, seeded few-shot splits, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from algorithm.data.pixels import to_rgb
from algorithm.errors import DataError


@dataclass
class Dataset:
    """images (S, H, W, 3) uint8, labels (S,) int64 within 0..len(classes)-1, class names. Checked when made."""

    images: np.ndarray
    labels: np.ndarray
    classes: list[str]
    name: str = ""

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[3] != 3:
            raise DataError(f"data {self.name!r}: images must be uint8 (S, H, W, 3), "
                            f"found {self.images.dtype} {self.images.shape}")
        if len(self.images) == 0:
            raise DataError(f"data {self.name!r} holds no image")
        self.labels = np.asarray(self.labels).astype(np.int64)
        if self.labels.shape != (len(self.images),):
            raise DataError(f"data {self.name!r}: {len(self.images)} images but labels of shape {self.labels.shape}")
        check_labels(self.labels, len(self.classes), self.name)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, index: np.ndarray | Sequence[int]) -> Dataset:
        """The images at these positions, in this order."""
        return Dataset(self.images[index], self.labels[index], self.classes, self.name)


def check_labels(labels: np.ndarray, classes: int, name: str = "") -> None:
    """Raise DataError unless every label is within 0..classes-1."""
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(bad):
        raise DataError(f"data {name!r}: label {labels[bad[0]]} of image {bad[0]} is outside 0..{classes - 1}; "
                        f"correct the labels or set model.num_classes")


def few_shot(labels: np.ndarray, per_class: int | None, seed: int, classes: Sequence[str] = ()) -> np.ndarray:
    """Positions of `per_class` images of each class, chosen by seed; None keeps all, in a seeded order.

    One of each class in turn, the classes shuffled in each round, which suits batch-1 SGD. Raises DataError when a
    class has too few images; `classes` are the names to say it by.
    """
    rng = np.random.default_rng(seed)
    if per_class is None:
        return rng.permutation(len(labels))
    rounds = []
    for c in np.unique(labels):
        here = np.flatnonzero(labels == c)
        if len(here) < per_class:
            name = classes[c] if classes else int(c)
            raise DataError(f"class {name!r} has {len(here)} images to train on (held-out ones not counted), {per_class} "
                            "asked for; lower data.images_per_class (--images_per_class)")
        rounds.append(rng.permutation(here)[:per_class])
    table = np.stack(rounds, axis=1)  # (per_class, classes)
    return np.concatenate([rng.permutation(row) for row in table])


def balanced(labels: np.ndarray, classes: Sequence[str], total: int, seed: int) -> np.ndarray:
    """`total` positions (or all, when there are fewer), the classes as even as they come, each at least once.

    Raises DataError when `total` is less than the classes.
    """
    if total < len(classes):
        raise DataError(f"data.test_images={total} cannot show each of the {len(classes)} classes: "
                        f"ask for {len(classes)} or more")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    seen: dict[int, int] = {}
    for k in order:
        c = int(labels[k])
        rank[k] = seen[c] = seen.get(c, -1) + 1
    by_round = order[np.argsort(rank[order], kind="stable")]
    return np.sort(by_round[:total])


def resize(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """Any image -> (size, size, 3) uint8 RGB (by the rules of `pixels`): the central square, bicubic with antialias."""
    image = to_rgb(Image.fromarray(image) if isinstance(image, np.ndarray) else image)
    width, height = image.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8)
