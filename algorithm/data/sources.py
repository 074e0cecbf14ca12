"""Where images come from: the embedded Fashion-MNIST subset, scikit-learn's digits, image folders, CIFAR."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from algorithm.data.dataset import Dataset, few_shot, resize, resize_all
from algorithm.errors import DataError

ASSETS = Path(__file__).parent / "assets"
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff"}
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test")
DIGITS_TEST_FRACTION = 4  # every fourth digit is held out

Pick = Callable[[np.ndarray], np.ndarray]  # labels (S,) -> positions to load
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
    index = pick(np.asarray(labels))
    return Dataset(resize_all(list(images[index]), size), np.asarray(labels)[index], classes, name)


def image_folder(root: str | Path, size: int, train: Pick, test: Pick) -> Split:
    """root/<split>/<class>/<image>. Splits are found by their names: train, and val, valid, validation or test.

    Without split folders, root/<class>/<image> is divided: every fifth image of a class is held out. Raises
    DataError: no such folder, empty folder, no or differing classes, corrupt image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"no image folder at {root}: set data.data_root")
    folders = {p.name.lower(): p for p in sorted(root.iterdir()) if p.is_dir()}
    train_dir = next((folders[n] for n in TRAIN_NAMES if n in folders), None)
    test_dir = next((folders[n] for n in TEST_NAMES if n in folders), None)
    if (train_dir is None) != (test_dir is None):
        lacking = "/".join(TRAIN_NAMES if train_dir is None else TEST_NAMES)
        raise DataError(f"{root} has only one of its two splits: add a folder {lacking}")
    if train_dir is not None and test_dir is not None:
        train_files, classes = _list_folder(train_dir)
        test_files, test_classes = _list_folder(test_dir)
        if classes != test_classes:
            odd = sorted(set(classes) ^ set(test_classes))[0]
            raise DataError(f"class {odd!r} is in only one of {train_dir} and {test_dir}")
    else:
        files, classes = _list_folder(root)
        position: dict[int, int] = {}
        train_files, test_files = [], []
        for path, label in files:
            k = position[label] = position.get(label, -1) + 1
            (test_files if k % 5 == 4 else train_files).append((path, label))
        if not test_files:
            raise DataError(f"{root} has fewer than five images in every class, too few to hold any out")
    return _load_files(train_files, classes, root.name, size, train), _load_files(test_files, classes, root.name,
                                                                                  size, test)


def _list_folder(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} is empty: it needs one folder a class, with images inside")
    if len(classes) == 1:
        raise DataError(f"{folder} holds a single class folder, {classes[0]!r}; if that is the data set, point to it")
    files: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        here = sorted(p for p in (folder / name).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not here:
            raise DataError(f"{folder / name} holds no image ({', '.join(sorted(SUFFIXES))})")
        files += [(p, label) for p in here]
    return files, classes


def _load_files(files: list[tuple[Path, int]], classes: list[str], name: str, size: int, pick: Pick) -> Dataset:
    labels = np.array([label for _, label in files], np.int64)
    index = pick(labels)
    images = np.empty((len(index), size, size, 3), np.uint8)
    for i, k in enumerate(index):
        images[i] = load_image(files[k][0], size)
    return Dataset(images, labels[index], classes, name)


def load_image(path: str | Path, size: int) -> np.ndarray:
    """An image file -> (size, size, 3) uint8. Raises DataError naming the file."""
    try:
        with Image.open(path) as image:
            return resize(image, size)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).replace(str(path), "it").splitlines()[0][:100]
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
        except (RuntimeError, OSError) as error:
            hint = "" if download else "; or allow it with data.download=true"
            raise DataError(f"{name} is not in {root} ({str(error).splitlines()[0][:80]}){hint}") from None
        parts.append(_from_arrays(np.asarray(raw.data), np.asarray(raw.targets), list(raw.classes), name, size, pick))
    return parts[0], parts[1]


def picker(per_class: int | None, total: int | None, seed: int) -> Pick:
    """A few-shot choice: `per_class` of each class, or about `total` over all classes, or everything (both None)."""
    def pick(labels: np.ndarray) -> np.ndarray:
        if total is not None:
            return _balanced(labels, total, seed)
        return few_shot(labels, per_class, seed)
    return pick


def _balanced(labels: np.ndarray, total: int, seed: int) -> np.ndarray:
    """`total` positions (or all, when there are fewer), the classes as even as they come."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    seen: dict[int, int] = {}
    for k in order:
        c = int(labels[k])
        rank[k] = seen[c] = seen.get(c, -1) + 1
    by_round = order[np.argsort(rank[order], kind="stable")]
    return np.sort(by_round[:total])
