"""The main job's data: chosen images of any source as arrays of uint8."""

from __future__ import annotations

import itertools

import numpy as np

from algorithm.data.broken import Broken, Warn, to_stderr
from algorithm.data.config import DataConfig
from algorithm.data.dataset import Dataset, balanced, check_labels, few_shot, resize
from algorithm.data.sources import whole_streams
from algorithm.data.streams import TEST_SEED, Stream
from algorithm.errors import DataError


def load_data(config: DataConfig, img_size: int, num_classes: int | None = None,
              warn: Warn = to_stderr) -> tuple[Dataset, Dataset]:
    """(training set, held-out set) at (img_size, img_size, 3) uint8. Only the chosen images are decoded.

    num_classes: what the model predicts; labels beyond it raise DataError. The held-out choice does not depend on
    `config.seed`, so that runs with several seeds are compared on the same images. warn takes a line for each broken
    image that `config.max_broken` tolerates (none by default).
    """
    train, test = whole_streams(config, warn)
    chosen = few_shot(train.labels, config.images_per_class, config.seed, train.classes)
    held = (few_shot(test.labels, None, TEST_SEED, test.classes) if config.test_images is None else
            balanced(test.labels, test.classes, config.test_images, TEST_SEED))
    pair = tuple(_decoded(part, index, img_size, Broken(part.name, config.max_broken or 0, warn))
                 for part, index in ((train, chosen), (test, held)))
    if num_classes is not None:
        for part in pair:
            check_labels(part.labels, num_classes, part.name)
    return pair[0], pair[1]


def _decoded(stream: Stream, index: np.ndarray, size: int, broken: Broken) -> Dataset:
    """The images at `index`. For a broken one stands the next readable image of its class that is not among them; where
    there is none it is left out."""
    images = np.empty((len(index), size, size, 3), np.uint8)
    used, kept = {int(k) for k in index}, list[int]()
    for row, k in enumerate(map(int, index)):
        spare = (j for j in stream.others(k) if j not in used)
        found, image, notes = stream.first_readable(itertools.chain((k,), spare), broken.limit)
        broken.add_all(notes)
        if image is not None:
            images[row] = resize(image, size)
            used.add(found)
            kept.append(row)
    if len(kept) < len(index):
        images = images[kept]
    labels = stream.labels[index]
    lost = sorted(set(labels.tolist()) - set(labels[kept].tolist()))
    if lost:
        raise DataError(f"no image of class {stream.classes[lost[0]]!r} in {stream.name} is readable: remove the class or "
                        f"replace its images ({', '.join(list(broken.found)[:5])})")
    return Dataset(images, labels[kept], stream.classes, stream.name)
