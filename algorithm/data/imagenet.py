"""The files and classes of imagefolder, imagenet and imagenet100: usual folders, lists of classes. Imports no PyTorch."""

from __future__ import annotations

from pathlib import Path

from algorithm.data.config import CLASSES, DataConfig
from algorithm.data.folders import TEST_NAMES, TRAIN_NAMES, Files, Warn, find_files
from algorithm.errors import DataError
from algorithm.textfile import read_text

SOLUTION = "LOC_val_solution.csv"
_PLACES = (".", "ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC", "ILSVRC", "ILSVRC2012", "imagenet")


def data_files(config: DataConfig, warn: Warn) -> tuple[Files, Files, list[str]]:
    """(training files, held-out files, class names) of imagefolder, imagenet and imagenet100. Raises DataError."""
    if config.data_root is None:
        raise DataError(f"{config.name} needs data.data_root (--data_root): the folder with the images")
    only = None if config.class_list is None else read_class_list(config.class_list)
    root, wanted = Path(config.data_root), CLASSES.get(config.name)
    listed = None
    if wanted is not None:
        listed = next((read_solution(p) for p in _solutions(root)), None)
        root = imagenet_root(root)
        if only is not None and len(only) != wanted:
            raise DataError(f"{config.name} has {wanted} classes, {config.class_list} lists {len(only)}: correct the list, "
                            "or set data.name=imagefolder")
    train, test, classes = find_files(root, only, warn if config.allow_missing_classes else None, listed)
    if wanted is not None and len(classes) != wanted:
        choose = "name the wanted ones in a file with data.class_list" if len(classes) > wanted else "point to all of it"
        raise DataError(f"{config.name} has {wanted} classes, {root} has {len(classes)}: {choose}, or set "
                        "data.name=imagefolder")
    return train, test, classes


def imagenet_root(root: Path) -> Path:
    """The folder that holds the splits: `root`, or where ImageNet's own archives put them below it. Raises DataError."""
    if not root.is_dir():
        raise DataError(f"no image folder at {root}: set data.data_root")
    for place in _PLACES:
        here = root / place
        if here.is_dir() and any(p.name.lower() in TRAIN_NAMES and p.is_dir() for p in here.iterdir()):
            return here
    raise DataError(f"{root} has no folder {'/'.join(TRAIN_NAMES)} (beside {'/'.join(TEST_NAMES)}), nor has "
                    f"{root / _PLACES[1]}: point data.data_root to the folder that has")


def _solutions(root: Path) -> list[Path]:
    return [p for p in (root / SOLUTION, root.parent / SOLUTION) if p.is_file()]


def read_solution(path: Path) -> dict[str, str]:
    """Name of a held-out image (no suffix) -> its synset, from the list that comes with ImageNet's flat `val` folder.

    Lines: `ImageId,PredictionString`, the latter beginning with the synset. Raises DataError.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(read_text(path, "list of held-out images", DataError).splitlines()[1:], 2):
        image, _, prediction = line.partition(",")
        if not image or not prediction.split():
            raise DataError(f"{path} line {number}: expected an image and its synset (ILSVRC2012_val_00000001,n01440764), "
                            f"found {line[:60]!r}")
        found[image] = prediction.split()[0]
    return found


def read_class_list(path: str | Path) -> list[str]:
    """Names of class folders from a text file: the first word of each line; empty lines and `#` comments do not count.

    Raises DataError.
    """
    lines = read_text(Path(path), "class list", DataError).splitlines()
    names = [line.split()[0] for line in (line.partition("#")[0] for line in lines) if line.split()]
    if len(names) < 2:
        raise DataError(f"class list {path} names {len(names)} classes: it needs two or more, one a line")
    double = next((name for k, name in enumerate(names) if name in names[:k]), None)
    if double is not None:
        raise DataError(f"class list {path} names {double!r} twice: leave one out")
    return names
