"""timm's names of data sets (`--dataset`, `--data-dir`) -> the `data` section. Imports no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from algorithm.data.config import FROM_A_FOLDER
from algorithm.errors import ConfigError
from algorithm.schema import nearest

_SPELLINGS: dict[str, tuple[str, ...]] = {
    "cifar10": ("cifar10", "cifar-10", "cifar_10"), "cifar100": ("cifar100", "cifar-100", "cifar_100"),
    "imagenet": ("imagenet", "imagenet1k", "imagenet-1k", "imagenet_1k", "ilsvrc2012"),
    "imagenet100": ("imagenet100", "imagenet-100", "imagenet_100"),
    "imagefolder": ("", "imagefolder", "image_folder", "folder"),
    "fashion-mnist": ("fashion-mnist",), "digits": ("digits",), "synthetic": ("synthetic", "fake", "fakedata"),
}
_OF_SPELLING = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings}
_FOREIGN = {"hfds": "Hugging Face", "hfids": "Hugging Face", "tfds": "TensorFlow", "wds": "WebDataset"}


def data_of_timm_name(dataset: str | None, data_dir: str | Path | None = None) -> dict[str, Any]:
    """The `data` section that timm's two flags mean: all images of both splits, as timm takes them.

    dataset: torch/cifar10, torch/cifar100, imagenet (or torch/imagenet), imagenet100, a name of ours, a folder of images
    (`folder`, or nothing, where data_dir names it; or the path itself). Raises ConfigError.
    """
    text = (dataset or "").strip()
    name = text.lower().removeprefix("torch/")
    prefix = text.lower().partition("/")[0] if "/" in text else ""
    if prefix in _FOREIGN:
        raise ConfigError(f"--dataset {text}: {_FOREIGN[prefix]} data sets are not read: save the images as a folder with "
                          "one folder a class, and give it as --data-dir")
    root = None if data_dir is None else str(data_dir)
    if name in _OF_SPELLING:
        source = _OF_SPELLING[name]
    elif data_dir is None and (Path(text).is_dir() or text.startswith((".", "/", "~"))):
        source, root = "imagefolder", str(Path(text).expanduser())
    else:
        raise ConfigError(f"--dataset {text!r} is not known{nearest(name, sorted(filter(None, _OF_SPELLING)))}; a folder of "
                          "images is given as --data-dir")
    if source not in FROM_A_FOLDER and root is not None:
        raise ConfigError(f"--data-dir {root} is given, but --dataset {text} needs no file: leave one out")
    if source == "imagefolder" and root is None:
        raise ConfigError("no data set is named: give --dataset NAME, --data-dir FOLDER, or both")
    section: dict[str, Any] = {"name": source, "images_per_class": None, "test_images": None}
    return section if root is None else {**section, "data_root": root}
