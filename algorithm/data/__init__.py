"""Data sets as uint8 arrays with seeded few-shot splits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from algorithm.data.config import DataConfig
from algorithm.errors import DataError
from algorithm.lazy import loader

if TYPE_CHECKING:
    from algorithm.data.dataset import Dataset, check_labels, few_shot, resize, resize_all
    from algorithm.data.sources import load_image

__getattr__ = loader(__name__, {
    "dataset": ("Dataset", "check_labels", "few_shot", "resize", "resize_all"), "sources": ("load_image",)})
__all__ = ["DataConfig", "Dataset", "check_labels", "few_shot", "load_data", "load_image", "resize", "resize_all"]

TEST_SEED = 12345  # held-out images are the same for every training seed


def load_data(config: DataConfig, img_size: int, num_classes: int | None = None) -> tuple[Dataset, Dataset]:
    """(training set, held-out set) at (img_size, img_size, 3) uint8. Only the chosen images are decoded.

    num_classes: what the model predicts; labels beyond it raise DataError. The held-out choice does not depend on
    `config.seed`, so that runs with several seeds are compared on the same images.
    """
    from algorithm.data.dataset import check_labels
    from algorithm.data.sources import cifar, digits, fashion_mnist, image_folder, picker
    train = picker(config.images_per_class, None, config.seed)
    test = picker(None, config.test_images, TEST_SEED)
    if config.name == "fashion-mnist":
        pair = fashion_mnist(img_size, train, test)
    elif config.name == "digits":
        pair = digits(img_size, train, test)
    elif config.name == "imagefolder":
        if config.data_root is None:
            raise DataError("imagefolder needs data.data_root (--data_root): the folder with the images")
        pair = image_folder(config.data_root, img_size, train, test)
    else:
        pair = cifar(config.name, config.data_root, config.download, img_size, train, test)
    if num_classes is not None:
        for part in pair:
            check_labels(part.labels, num_classes, part.name)
    return pair
