"""Data sets one image at a time. A stream knows its labels and where its images are; it opens an image when asked.

    open_streams(config)   -> the training and the held-out stream
    stream[i]              -> (PIL image RGB, label), or (stream.transform(image), label) once a transform is set
"""

from __future__ import annotations

import copy
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from algorithm.data.broken import Broken, BrokenImage, Notes, Warn, to_stderr
from algorithm.data.config import DataConfig, SyntheticConfig
from algorithm.data.dataset import balanced, few_shot
from algorithm.data.folders import Files
from algorithm.data.pixels import to_rgb
from algorithm.errors import DataError
from algorithm.schema import one_line

TEST_SEED = 12345  # held-out images are the same for every training seed


def open_streams(config: DataConfig, warn: Warn = to_stderr) -> tuple[Stream, Stream]:
    """(training stream, held-out stream) of a configuration. No image is decoded. Raises DataError.

    The choice of `images_per_class` and `test_images` is that of the main job (`load_data`). warn takes one line for
    each broken image that is tolerated, and for classes without held-out images.
    """
    from algorithm.data.sources import whole_streams

    train, test = whole_streams(config, warn)
    if config.images_per_class is not None:
        train = train.choose(np.sort(few_shot(train.labels, config.images_per_class, config.seed, train.classes)))
    if config.test_images is not None:
        test = test.choose(balanced(test.labels, test.classes, config.test_images, TEST_SEED))
    for part in (train, test):
        part.broken = Broken(part.name, config.limit_of(len(part)), warn)
    return train, test


class Stream:
    """A map-style data set. labels (S,) int64, classes, name, broken (what could not be read), transform (None: images).

    Subclasses say how an image is opened and what it is called.
    """

    def __init__(self, labels: np.ndarray, classes: Sequence[str], name: str) -> None:
        self.labels = np.asarray(labels).astype(np.int64)
        self.classes, self.name = list(classes), name
        self.transform: Callable[[Image.Image], Any] | None = None
        self.broken = Broken(name, 0, to_stderr)
        self._rows = np.arange(len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        """Image and label. A broken image is replaced by the next readable one of its class, up to `broken.limit`."""
        image, label, notes = self.read(i)
        self.broken.add_all(notes)
        return (image if self.transform is None else self.transform(image)), label

    def choose(self, index: np.ndarray) -> Stream:
        """The same images at these positions only, in this order."""
        part = copy.copy(self)
        part.labels, part._rows = self.labels[index], self._rows[index]
        part.broken = Broken(self.name, self.broken.limit, self.broken.warn)
        return part

    def open(self, i: int) -> Image.Image:
        """Image i, RGB. Raises BrokenImage."""
        return self._open(int(self._rows[i]))

    def title(self, i: int) -> str:
        """What image i is called: its path, where it has one."""
        return self._title(int(self._rows[i]))

    def read(self, i: int) -> tuple[Image.Image, int, Notes]:
        """Image i, or where it is broken the next readable one of its class; its label; the broken ones met.

        The notes are for `broken.add_all`, which counts: in a worker process nobody would see its count. Raises DataError
        where no image of the class is readable.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)} in {self.name}")
        _, image, notes = self.first_readable(itertools.chain((i,), self.others(i)), self.broken.limit)
        if image is None and len(notes) <= self.broken.limit:
            raise DataError(f"no image of class {self.classes[self.labels[i]]!r} in {self.name} is readable: remove the "
                            f"class or replace its images ({', '.join(path for path, _, _ in notes[:5])})")
        if image is None:  # more are broken than may be: `broken.add_all` refuses
            image = _BLANK
        return image, int(self.labels[i]), notes

    def first_readable(self, positions: Iterable[int], limit: int) -> tuple[int, Image.Image | None, Notes]:
        """The first position whose image can be read, that image, and the broken ones before it.

        (-1, None, ...) where there is none, or more than `limit` were broken.
        """
        failed: list[BrokenImage] = []
        for k in positions:
            try:
                image = self.open(k)
            except BrokenImage as error:
                failed.append(error)
                if len(failed) > limit:
                    break
            else:
                return k, image, [(e.path, e.reason, f"{self.title(k)} stands for it") for e in failed]
        return -1, None, [(e.path, e.reason, "it is left out") for e in failed]

    def others(self, i: int) -> Iterator[int]:
        """The other positions of image i's class, from i on and round."""
        same = np.flatnonzero(self.labels == self.labels[i])
        here = int(np.searchsorted(same, i))
        yield from map(int, same[here + 1:])
        yield from map(int, same[:here])

    def _open(self, row: int) -> Image.Image:
        raise NotImplementedError

    def _title(self, row: int) -> str:
        return f"{row} of {self.name}"


_BLANK = Image.new("RGB", (1, 1))


class FolderStream(Stream):
    """Image files. Their paths are kept end to end in one text of bytes, which forked worker processes share: a million cost
    some 50 MB, not one object each."""

    def __init__(self, files: Files, classes: Sequence[str], name: str, root: str | Path) -> None:
        super().__init__(np.fromiter((label for _, label in files), np.int64, len(files)), classes, name)
        self.root = str(root)
        above = os.path.join(self.root, "")
        paths = [os.fsencode(path.removeprefix(above)) for path, _ in files]
        self._paths, self._ends = b"".join(paths), np.cumsum([len(path) for path in paths])

    def _open(self, row: int) -> Image.Image:
        return open_rgb(self._title(row))

    def _title(self, row: int) -> str:
        start = self._ends[row - 1] if row else 0
        return os.path.join(self.root, os.fsdecode(self._paths[start:self._ends[row]]))


def open_rgb(path: str | Path) -> Image.Image:
    """An image file, converted by the rules of `pixels`. Raises BrokenImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of large images and odd metadata
            with Image.open(path) as image:
                return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # the decoders raise many classes; all mean: no such image, or a broken one
        raise BrokenImage(str(path), one_line(error, 120).replace(str(path), "it")) from None


class ArrayStream(Stream):
    """Images that are in memory: (S, H, W) grey or (S, H, W, 3) RGB, uint8."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: Sequence[str], name: str) -> None:
        super().__init__(labels, classes, name)
        self.images = images

    def _open(self, row: int) -> Image.Image:
        return to_rgb(Image.fromarray(self.images[row]))


class SyntheticStream(Stream):
    """Images made from numbers: a smooth pattern a class, blended for each image with one of its own, and noise.

    Image k of a part is a function of (seed, part, k) only.
    """

    GRID, BLEND, NOISE = 4, 0.35, 12.0  # cells of a pattern a side; the image's own share; standard deviation of noise

    def __init__(self, options: SyntheticConfig, part: int) -> None:
        each = options.held_out if part else options.images
        classes = [f"class_{c}" for c in range(options.classes)]
        super().__init__(np.tile(np.arange(options.classes), each), classes, "synthetic")
        self.options, self.part = options, part

    def _open(self, row: int) -> Image.Image:
        own = np.random.default_rng([self.options.seed, 1 + self.part, row])
        of_class = np.random.default_rng([self.options.seed, 0, row % self.options.classes])
        cells = (1 - self.BLEND) * self._pattern(of_class) + self.BLEND * self._pattern(own)
        small = Image.fromarray(np.round(cells).astype(np.uint8))
        side = self.options.size
        smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.float64)
        noisy = smooth + own.normal(0.0, self.NOISE, smooth.shape)
        return Image.fromarray(np.clip(np.round(noisy), 0, 255).astype(np.uint8))

    def _pattern(self, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(0, 255, (self.GRID, self.GRID, 3))
