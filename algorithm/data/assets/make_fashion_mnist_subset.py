"""Make fashion_mnist_subset.npz from the whole Fashion-MNIST, as Debian's `dataset-fashion-mnist` package installs it.

    apt-get install dataset-fashion-mnist     (or: apt-get download, dpkg -x)
    python algorithm/data/assets/make_fashion_mnist_subset.py /usr/share/datasets/fashion-mnist

The first TRAIN and TEST images of each class, in the data set's order: no choice by looking.
"""

from __future__ import annotations

import gzip
import sys
import zipfile
from pathlib import Path

import numpy as np

TRAIN, TEST = 500, 200  # a class
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes (gzip) -> array."""
    raw = gzip.decompress(path.read_bytes())
    dims = raw[3]
    shape = np.frombuffer(raw, ">i4", dims, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape)


def subset(root: Path, prefix: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of each class, ordered as in the data set."""
    images = read_idx(root / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(root / f"{prefix}-labels-idx1-ubyte.gz")
    index = np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)]))
    return images[index], labels[index]


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """np.savez_compressed with fixed times, so that the same data gives the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array))


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist")
    train, train_labels = subset(root, "train", TRAIN)
    test, test_labels = subset(root, "t10k", TEST)
    save_npz(Path(__file__).parent / "fashion_mnist_subset.npz", {
        "train_images": train, "train_labels": train_labels, "test_images": test, "test_labels": test_labels,
        "classes": np.array(CLASSES)})


if __name__ == "__main__":
    main()
