"""Images as uint8 arrays with labels, seeded few-shot splits, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

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


def few_shot(labels: np.ndarray, per_class: int | None, seed: int, interleave: bool = True) -> np.ndarray:
    """Positions of `per_class` images of each class, chosen by seed; None keeps all, in a seeded order.

    Interleaved: one of each class in turn, the classes shuffled in each round, which suits batch-1 SGD.
    Raises DataError when a class has too few images.
    """
    rng = np.random.default_rng(seed)
    if per_class is None:
        return rng.permutation(len(labels))
    rounds = []
    for c in np.unique(labels):
        here = np.flatnonzero(labels == c)
        if len(here) < per_class:
            raise DataError(f"class {c} has {len(here)} images, {per_class} asked for; lower data.images_per_class")
        rounds.append(rng.permutation(here)[:per_class])
    table = np.stack(rounds, axis=1)  # (per_class, classes)
    if not interleave:
        return table.T.reshape(-1)
    return np.concatenate([rng.permutation(row) for row in table])


def resize(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """Any image -> (size, size, 3) uint8 RGB: the central square, resized bicubic with antialias."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image = image.convert("RGB")
    width, height = image.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8)


def resize_all(images: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Images of any size, grey (H, W) or RGB (H, W, 3), -> (S, size, size, 3) uint8."""
    out = np.empty((len(images), size, size, 3), np.uint8)
    for i, image in enumerate(images):
        out[i] = resize(image, size)
    return out
