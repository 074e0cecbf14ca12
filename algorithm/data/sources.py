"""Where images come from: the embedded Fashion-MNIST subset, scikit-learn's digits, numbers, image folders, CIFAR.

Each gives two streams over all of its images; `algorithm.data.load_data` and `open_streams` choose from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from algorithm.data.broken import Warn
from algorithm.data.config import OF_IMAGE_FILES, DataConfig
from algorithm.data.dataset import resize
from algorithm.data.imagenet import data_files
from algorithm.data.streams import ArrayStream, FolderStream, Stream, SyntheticStream, open_rgb
from algorithm.errors import DataError
from algorithm.schema import one_line

fcntl: Any
try:
    import fcntl
except ImportError:  # not on every system
    fcntl = None

ASSETS = Path(__file__).parent / "assets"
DIGITS_TEST_FRACTION = 4  # every fourth digit is held out

Pair = tuple[Stream, Stream]


def whole_streams(config: DataConfig, warn: Warn) -> Pair:
    """All training and all held-out images of a source; no image file is opened. Raises DataError."""
    if config.name == "fashion-mnist":
        return fashion_mnist()
    if config.name == "digits":
        return digits()
    if config.name == "synthetic":
        return SyntheticStream(config.synthetic, 0), SyntheticStream(config.synthetic, 1)
    if config.name in OF_IMAGE_FILES:
        return image_folder(config, warn)
    return cifar(config.name, config.data_root, config.download)


def fashion_mnist() -> Pair:
    """The embedded class-balanced subset of Fashion-MNIST (MIT), grey 28 x 28."""
    with np.load(ASSETS / "fashion_mnist_subset.npz") as raw:
        arrays = {k: raw[k] for k in raw.files}
    classes = [str(c) for c in arrays["classes"]]
    return (ArrayStream(arrays["train_images"], arrays["train_labels"], classes, "fashion-mnist"),
            ArrayStream(arrays["test_images"], arrays["test_labels"], classes, "fashion-mnist"))


def digits() -> Pair:
    """scikit-learn's 1,797 handwritten digits, grey 8 x 8; every fourth is held out."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.clip(np.round(raw.images * (255.0 / 16.0)), 0, 255).astype(np.uint8)
    held = np.arange(len(images)) % DIGITS_TEST_FRACTION == DIGITS_TEST_FRACTION - 1
    classes = [str(c) for c in range(10)]
    return (ArrayStream(images[~held], raw.target[~held], classes, "digits"),
            ArrayStream(images[held], raw.target[held], classes, "digits"))


def image_folder(config: DataConfig, warn: Warn) -> Pair:
    """root/<split>/<class>/<image>. Splits are found by their names: train, and val, valid, validation or test.

    Without split folders, root/<class>/<image> is divided: every fifth image of a class is held out, of fewer than five
    one. Raises DataError: no such folder, empty folder, no or differing classes, a class of one image.
    """
    train, test, classes = data_files(config, warn)
    root = Path(config.data_root or "")
    name = root.resolve().name
    return FolderStream(train, classes, name, root), FolderStream(test, classes, name, root)


def load_image(path: str | Path, size: int) -> np.ndarray:
    """An image file -> (size, size, 3) uint8, converted by the rules of `pixels`. Raises DataError naming the file."""
    return resize(open_rgb(path), size)


def cifar(name: str, root: str | Path | None, download: bool) -> Pair:
    """CIFAR-10 or CIFAR-100 through torchvision, from a local root; downloaded only when allowed. Raises DataError."""
    from algorithm.models.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from torchvision import datasets

    if root is None:
        raise DataError(f"{name} needs data.data_root: the folder that holds torchvision's copy of it")
    kind: Any = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    parts = []
    for is_train in (True, False):
        try:
            with _alone(Path(root)) if download else contextlib.nullcontext():
                raw = kind(str(root), train=is_train, download=download)
        except Exception as error:  # torchvision, urllib and pickle raise many classes
            if download:
                raise DataError(f"{name} cannot be downloaded into {root} ({one_line(error, 80)}): where there is no "
                                f"network, unpack {kind.filename} there and set data.download=false") from None
            raise DataError(f"{name} is not in {root} ({one_line(error, 80)}): unpack {kind.filename} there, or allow it "
                            "with data.download=true") from None
        parts.append(ArrayStream(np.asarray(raw.data), np.asarray(raw.targets), list(raw.classes), name))
    return parts[0], parts[1]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, of those on this machine: the others find what the first has downloaded."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".download.lock").open("w") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
