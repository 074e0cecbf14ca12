"""Which files of a folder are data: splits, classes, images; and what is held out where there are no splits.

Not data: anything hidden (a name that begins with a dot), `__MACOSX`, `@eaDir`, files without an image's suffix (of any
case), and a link that leads back to a folder above it. Other links are followed.
"""

from __future__ import annotations

import os
from pathlib import Path

from algorithm.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff",
            ".avif", ".heic", ".heif", ".jp2"}  # the last only where Pillow can; elsewhere they are refused by name
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test")  # in this order: with val and test, val is held out
HELD_OUT = 5  # without splits, every fifth image of a class
_NOT_DATA = ("__macosx", "@eadir")

Files = list[tuple[Path, int]]  # image, label


def find_files(root: Path) -> tuple[Files, Files, list[str]]:
    """(training files, held-out files, class names) of root/<split>/<class>/<image> or root/<class>/<image>.

    Every class has an image in both parts, and no file is in both. Raises DataError.
    """
    if not root.is_dir():
        raise DataError(f"no image folder at {root}: set data.data_root")
    folders = _folders(root)
    train_dir, test_dir = (_split(root, folders, names) for names in (TRAIN_NAMES, TEST_NAMES))
    if (train_dir is None) != (test_dir is None):
        lacking = "/".join(TRAIN_NAMES if train_dir is None else TEST_NAMES)
        raise DataError(f"{root} has only one of its two splits: add a folder {lacking}")
    if train_dir is None or test_dir is None:
        files, classes = list_classes(root)
        return *hold_out(files, classes, root), classes
    train, classes = list_classes(train_dir)
    test, test_classes = list_classes(test_dir)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))[0]
        raise DataError(f"class {odd!r} is in only one of {train_dir} and {test_dir}")
    trained = {os.path.realpath(path) for path, _ in train}
    both = next((path for path, _ in test if os.path.realpath(path) in trained), None)
    if both is not None:
        raise DataError(f"{both} is also a training image (a link): held-out images must be others")
    return train, test, classes


def hold_out(files: Files, classes: list[str], root: Path) -> tuple[Files, Files]:
    """Of k images of a class every fifth is held out, and one where there are fewer than five.

    Raises DataError for a class of one image: it can be trained or tested, not both.
    """
    train: Files = []
    test: Files = []
    by_class: list[Files] = [[] for _ in classes]
    for file in files:
        by_class[file[1]].append(file)
    for name, here in zip(classes, by_class, strict=True):
        if len(here) == 1:
            raise DataError(f"class {name!r} in {root} has a single image, so none can be held out: add one, or make "
                            "folders train and val")
        held = set(range(HELD_OUT - 1, len(here), HELD_OUT)) or {len(here) - 1}
        for k, file in enumerate(here):
            (test if k in held else train).append(file)
    return train, test


def list_classes(folder: Path) -> tuple[Files, list[str]]:
    """The images of a folder of class folders, by class and path, and the class names. Raises DataError."""
    classes = _folders(folder)
    if not classes:
        raise DataError(f"{folder} is empty: it needs one folder a class, with images inside")
    if len(classes) == 1:
        raise DataError(f"{folder} holds a single class folder, {classes[0].name!r}; if that is the data set, point to it")
    known: dict[str, str] = {}
    for path in classes:
        other = known.setdefault(path.name.casefold(), path.name)
        if other != path.name:
            raise DataError(f"{folder} has two class folders that differ in case only, {other!r} and {path.name!r}: "
                            "rename or merge them")
    files: Files = []
    for label, path in enumerate(classes):
        here = _images(path, _chain(path))
        if not here:
            raise DataError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
        files += [(p, label) for p in here]
    return files, [p.name for p in classes]


def _split(root: Path, folders: list[Path], names: tuple[str, ...]) -> Path | None:
    """The first of `names` that is a folder, whatever its case. Raises DataError where two are the same split."""
    for name in names:
        found = [p for p in folders if p.name.lower() == name]
        if len(found) > 1:
            raise DataError(f"{root} has two folders for one split, {found[0].name!r} and {found[1].name!r}: rename one")
        if found:
            return found[0]
    return None


def _entries(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from None
    return [folder / n for n in names if not n.startswith(".") and n.lower() not in _NOT_DATA]


def _chain(folder: Path) -> set[str]:
    """The real paths of a folder and of everything above it."""
    real = Path(os.path.realpath(folder))
    return {str(real), *map(str, real.parents)}


def _folders(folder: Path) -> list[Path]:
    above = _chain(folder)
    return [p for p in _entries(folder) if p.is_dir() and os.path.realpath(p) not in above]


def _images(folder: Path, above: set[str]) -> list[Path]:
    """Images at any depth below a folder. `above`: real paths of the folders that lead here."""
    found: list[Path] = []
    for path in _entries(folder):
        if path.is_dir():
            real = os.path.realpath(path)
            if real not in above:
                found += _images(path, {*above, real})
        elif path.suffix.lower() in SUFFIXES:
            if not path.is_file():
                raise DataError(f"image {path} is not a file (a broken link?): remove or replace it")
            found.append(path)
    return found
