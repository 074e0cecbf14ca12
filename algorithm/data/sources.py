"""Where images come from: the embedded Fashion-MNIST subset, scikit-learn's digits, image folders, CIFAR."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from algorithm.data.dataset import Dataset, balanced, few_shot, resize, resize_all
from algorithm.data.folders import Files, find_files
from algorithm.errors import DataError
from algorithm.schema import one_line

ASSETS = Path(__file__).parent / "assets"
DIGITS_TEST_FRACTION = 4  # every fourth digit is held out

Pick = Callable[[np.ndarray, list[str]], np.ndarray]  # labels (S,), class names -> positions to load
Split = tuple[Dataset, Dataset]


def fashion_mnist(size: int, train: Pick, test: Pick) -> Split:
    """The embedded class-balanced subset of Fashion-MNIST (MIT), grey 28 x 28, resized."""
    with np.load(ASSETS / "fashion_mnist_subset.npz") as raw:
        arrays = {k: raw[k] for k in raw.files}
    classes = [str(c) for c in arrays["classes"]]
    return (_from_arrays(arrays["train_images"], arrays["train_labels"], classes, "fashion-mnist", size, train),
            _from_arrays(arrays["test_images"], arrays["test_labels"], classes, "fashion-mnist", size, test))


def digits(size: int, train: Pick, test: Pick) -> Split:
    """scikit-learn's 1,797 handwritten digits, grey 8 x 8, resized; every fourth is held out."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.clip(np.round(raw.images * (255.0 / 16.0)), 0, 255).astype(np.uint8)
    held = np.arange(len(images)) % DIGITS_TEST_FRACTION == DIGITS_TEST_FRACTION - 1
    classes = [str(c) for c in range(10)]
    return (_from_arrays(images[~held], raw.target[~held], classes, "digits", size, train),
            _from_arrays(images[held], raw.target[held], classes, "digits", size, test))


def _from_arrays(images: np.ndarray, labels: np.ndarray, classes: list[str], name: str, size: int,
                 pick: Pick) -> Dataset:
    index = pick(np.asarray(labels), classes)
    return Dataset(resize_all(list(images[index]), size), np.asarray(labels)[index], classes, name)


def image_folder(root: str | Path, size: int, train: Pick, test: Pick) -> Split:
    """root/<split>/<class>/<image>. Splits are found by their names: train, and val, valid, validation or test.

    Without split folders, root/<class>/<image> is divided: every fifth image of a class is held out, of fewer than five
    one. Raises DataError: no such folder, empty folder, no or differing classes, a class of one image, corrupt image.
    """
    root = Path(root)
    train_files, test_files, classes = find_files(root)
    return (_load_files(train_files, classes, root.name, size, train),
            _load_files(test_files, classes, root.name, size, test))


def _load_files(files: Files, classes: list[str], name: str, size: int, pick: Pick) -> Dataset:
    labels = np.array([label for _, label in files], np.int64)
    index = pick(labels, classes)
    images = np.empty((len(index), size, size, 3), np.uint8)
    for i, k in enumerate(index):
        images[i] = load_image(files[k][0], size)
    return Dataset(images, labels[index], classes, name)


def load_image(path: str | Path, size: int) -> np.ndarray:
    """An image file -> (size, size, 3) uint8, converted by the rules of `pixels`. Raises DataError naming the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of large images and odd metadata
            with Image.open(path) as image:
                return resize(image, size)
    except Exception as error:  # the decoders raise many classes; all mean: no such image, or a broken one
        reason = one_line(error, 120).replace(str(path), "it")
        raise DataError(f"image {path} is corrupt or unreadable ({reason}): remove or replace it") from None


def cifar(name: str, root: str | Path | None, download: bool, size: int, train: Pick, test: Pick) -> Split:
    """CIFAR-10 or CIFAR-100 through torchvision, from a local root; downloaded only when allowed."""
    from algorithm.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from torchvision import datasets

    if root is None:
        raise DataError(f"{name} needs data.data_root: the folder that holds torchvision's copy of it")
    kind: Any = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    parts = []
    for is_train, pick in ((True, train), (False, test)):
        try:
            raw = kind(str(root), train=is_train, download=download)
        except Exception as error:  # torchvision and pickle raise many classes
            hint = "" if download else "; or allow it with data.download=true"
            raise DataError(f"{name} is not in {root} ({one_line(error, 80)}){hint}") from None
        parts.append(_from_arrays(np.asarray(raw.data), np.asarray(raw.targets), list(raw.classes), name, size, pick))
    return parts[0], parts[1]


def picker(per_class: int | None, total: int | None, seed: int) -> Pick:
    """A few-shot choice: `per_class` of each class, or at most `total` over all classes, or everything (both None)."""
    def pick(labels: np.ndarray, classes: list[str]) -> np.ndarray:
        if total is not None:
            return balanced(labels, classes, total, seed)
        return few_shot(labels, per_class, seed, classes)
    return pick
