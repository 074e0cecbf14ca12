"""Which files of a folder are data: splits, classes, images; and what is held out where there are no splits.

Not data: anything hidden (a name that begins with a dot), `__MACOSX`, `@eaDir`, files without an image's suffix (of any
case), and a link that leads back to a folder above it. Other links are followed. Names are read, no file is opened: a
folder of a million images costs a few seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from algorithm.errors import DataError
from algorithm.schema import nearest

SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff",
            ".avif", ".heic", ".heif", ".jp2"}  # the last only where Pillow can; elsewhere they are refused by name
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test")  # in this order: with val and test, val is held out
HELD_OUT = 5  # without splits, every fifth image of a class
_NOT_DATA = ("__macosx", "@eadir")

Files = list[tuple[str, int]]  # image, label
Warn = Callable[[str], None]


@dataclass
class _Walk:
    """What was met on the way to the images: the real folders that hold them, and whether an image is a link."""

    folders: set[str] = field(default_factory=set)
    linked: bool = False


def find_files(root: Path, only: Sequence[str] | None = None, missing: Warn | None = None,
               listed: Mapping[str, str] | None = None) -> tuple[Files, Files, list[str]]:
    """(training files, held-out files, class names) of root/<split>/<class>/<image> or root/<class>/<image>.

    Every class has an image in both parts, and no file is in both. only: class folders that count, labelled in this
    order; None = all of them, by name. missing: takes one line for all classes without a held-out image; None: they are
    refused. listed: class of a held-out image by its name without suffix, for a split without class folders. Raises
    DataError.
    """
    if not root.is_dir():
        raise DataError(f"no image folder at {root}: set data.data_root")
    folders = _folders(root)
    train_dir, test_dir = (_split(root, folders, names) for names in (TRAIN_NAMES, TEST_NAMES))
    if (train_dir is None) != (test_dir is None):
        lacking = "/".join(TRAIN_NAMES if train_dir is None else TEST_NAMES)
        raise DataError(f"{root} has only one of its two splits: add a folder {lacking}")
    if train_dir is None or test_dir is None:
        files, classes = list_classes(root, only)
        return *hold_out(files, classes, root), classes
    trained, tested = _Walk(), _Walk()
    train, classes = list_classes(train_dir, only, walk=trained)
    test = _held_out(test_dir, train_dir, classes, only is None, missing, listed, tested)
    if trained.linked or tested.linked or trained.folders & tested.folders:
        real = {os.path.realpath(path) for path, _ in train}
        both = next((path for path, _ in test if os.path.realpath(path) in real), None)
        if both is not None:
            raise DataError(f"{both} is also a training image (a link): held-out images must be others")
    return train, test, classes


def _held_out(test_dir: Path, train_dir: Path, classes: list[str], whole: bool, missing: Warn | None,
              listed: Mapping[str, str] | None, walk: _Walk) -> Files:
    """The held-out images with the labels of the training part's classes. whole: no other class may be there."""
    known = {name: label for label, name in enumerate(classes)}
    folders = _folders(test_dir)
    if not folders and listed is None:
        raise DataError(_without_classes(test_dir))
    here = ({p.name: list(_images(p, walk)) for p in folders if whole or p.name in known} if folders else
            _by_list(test_dir, listed or {}, walk))
    unknown = sorted(set(here) - set(known))
    if whole and unknown:
        raise DataError(f"class {unknown[0]!r} is in only one of {train_dir} and {test_dir}: it has no training image, so "
                        "remove its held-out ones or add some to train on")
    files: Files = []
    without: list[str] = []
    for name, label in known.items():
        if not here.get(name):
            without.append(name)
        files += [(path, label) for path in here.get(name, ())]
    if without and missing is None:
        more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
        raise DataError(f"class {without[0]!r}{more} is in only one of {train_dir} and {test_dir}: add held-out images of "
                        "it, or go on without with data.allow_missing_classes=true")
    if not files:
        raise DataError(f"{test_dir} holds no image of any class of {train_dir}: it needs one folder a class, with images "
                        "inside")
    if without and missing is not None:
        missing(f"no held-out image in {test_dir} of {len(without)} of {len(classes)} classes, which are not evaluated: "
                f"{', '.join(without[:10])}{', ...' if len(without) > 10 else ''}")
    return files


def _by_list(folder: Path, listed: Mapping[str, str], walk: _Walk) -> dict[str, list[str]]:
    """The images of a folder by their class, which a list gives. Raises DataError for one that is not listed."""
    out: dict[str, list[str]] = {}
    for path in _images(folder, walk):
        stem = os.path.splitext(os.path.basename(path))[0]
        if stem not in listed:
            raise DataError(f"image {path} is not in the list of held-out images: add it there, or remove it")
        out.setdefault(listed[stem], []).append(path)
    return out


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


def list_classes(folder: Path, only: Sequence[str] | None = None, walk: _Walk | None = None) -> tuple[Files, list[str]]:
    """The images of a folder of class folders, by class and path, and the class names. Raises DataError."""
    classes = _folders(folder)
    if not classes:
        raise DataError(_without_classes(folder))
    known: dict[str, str] = {}
    for path in classes:
        other = known.setdefault(path.name.casefold(), path.name)
        if other != path.name:
            raise DataError(f"{folder} has two class folders that differ in case only, {other!r} and {path.name!r}: "
                            "rename or merge them")
    if only is not None:
        here = {p.name: p for p in classes}
        absent = next((name for name in only if name not in here), None)
        if absent is not None:
            raise DataError(f"class {absent!r} of data.class_list is not in {folder}{nearest(absent, sorted(here)[:2000])}")
        classes = [here[name] for name in only]
    if len(classes) == 1:
        raise DataError(f"{folder} holds a single class folder, {classes[0].name!r}; if that is the data set, point to it")
    files: Files = []
    for label, path in enumerate(classes):
        found = list(_images(path, walk or _Walk()))
        if not found:
            raise DataError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
        files += [(p, label) for p in found]
    return files, [p.name for p in classes]


def _without_classes(folder: Path) -> str:
    flat = next((e.name for e in _entries(folder) if os.path.splitext(e.name)[1].lower() in SUFFIXES), None)
    if flat is not None:
        return f"{folder} holds images ({flat}, ...) but no class folders: move each image into a folder of its class"
    return f"{folder} is empty: it needs one folder a class, with images inside"


def _split(root: Path, folders: list[Path], names: tuple[str, ...]) -> Path | None:
    """The first of `names` that is a folder, whatever its case. Raises DataError where two are the same split."""
    for name in names:
        found = [p for p in folders if p.name.lower() == name]
        if len(found) > 1:
            raise DataError(f"{root} has two folders for one split, {found[0].name!r} and {found[1].name!r}: rename one")
        if found:
            return found[0]
    return None


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".") and e.name.lower() not in _NOT_DATA),
                          key=lambda e: e.name)
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror or error}") from None


def _folders(folder: Path) -> list[Path]:
    real = Path(os.path.realpath(folder))
    above = {str(real), *map(str, real.parents)}
    return [folder / e.name for e in _entries(folder)
            if e.is_dir() and not (e.is_symlink() and os.path.realpath(e.path) in above)]


def _images(folder: Path, walk: _Walk) -> Iterator[str]:
    """Images at any depth below a class folder, in the order of their names."""
    real = Path(os.path.realpath(folder))
    yield from _below(str(folder), str(real), {str(real), *map(str, real.parents)}, walk)


def _below(folder: str, real: str, above: set[str], walk: _Walk) -> Iterator[str]:
    """`real`: the folder's real path; `above`: it and the real paths of the folders that lead here."""
    for entry in _entries(folder):
        link = entry.is_symlink()
        if entry.is_dir():
            deeper = os.path.realpath(entry.path) if link else os.path.join(real, entry.name)
            if deeper not in above:
                yield from _below(entry.path, deeper, {*above, deeper}, walk)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            if not entry.is_file():
                raise DataError(f"image {entry.path} is not a file (a broken link?): remove or replace it")
            walk.folders.add(real)
            walk.linked = walk.linked or link
            yield entry.path
