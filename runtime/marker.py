"""The file by which a run folder is known, with the list of what the run wrote: nothing else is ever deleted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

MARKER = ".vit-run.json"
FORMAT = "vit-run-1"


@dataclass
class Marker:
    """name: of the run. settings: the resolved configuration. names: files and folders at the top that the run writes.
    files (of a finished run): path within the folder -> [size, time of the last change in ns] as the run left it.
    """

    name: str
    settings: dict[str, Any]
    format: str = FORMAT
    created: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))
    finished: bool = False
    names: list[str] = field(default_factory=list)
    files: dict[str, list[int]] = field(default_factory=dict)

    @staticmethod
    def read(folder: Path) -> Marker:
        """Raises ValueError where the folder has no readable marker of this format."""
        if folder.is_symlink() or not folder.is_dir():
            raise ValueError(f"{folder} is no folder")
        try:
            marker = Marker(**json.loads((folder / MARKER).read_text()))
            kinds = (marker.name, str), (marker.settings, dict), (marker.names, list), (marker.files, dict)
            if marker.format == FORMAT and all(isinstance(value, kind) for value, kind in kinds):
                return marker
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{folder / MARKER} cannot be read ({error})") from None
        raise ValueError(f"{folder / MARKER} is not of the format {FORMAT}")

    def write(self, folder: Path) -> None:
        """All or nothing. Raises OSError."""
        fresh = folder / (MARKER + ".new")
        fresh.write_text(json.dumps(asdict(self)) + "\n")
        fresh.replace(folder / MARKER)

    def finish(self, folder: Path) -> None:
        """Takes down what the run wrote, as it is now."""
        self.files = {p.relative_to(folder).as_posix(): state(p) for name in self.names for p in tree(folder / name)}
        self.finished = True
        self.write(folder)

    def foreign(self, folder: Path) -> list[str]:
        """What lies in a finished run's folder that the run did not write, or not so."""
        found = {p.relative_to(folder).as_posix(): p for p in tree(folder)}
        return sorted(n for n, p in found.items() if n != MARKER and self.files.get(n) != state(p))


def written(folder: Path, name: str) -> list[Path]:
    """A file or folder that a run writes, and what its writing leaves beside it when it is cut short: `<name>.new`,
    `.<name>.*`."""
    return [p for p in sorted(folder.iterdir()) if p.name in (name, name + ".new") or p.name.startswith(f".{name}.")]


def tree(path: Path) -> list[Path]:
    """Every file (and link, and empty folder) at or below a path; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        return [path] if os.path.lexists(path) else []
    inside = sorted(path.iterdir())
    return [p for child in inside for p in tree(child)] or [path]


def state(path: Path) -> list[int]:
    found = path.lstat()
    return [found.st_size if not path.is_dir() else 0, found.st_mtime_ns]


def remove(path: Path) -> None:
    """A file or link, or a folder whole; what is not there is removed already. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys of two configurations whose values differ."""
    out = []
    for key in sorted({*old, *new}):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differences(a, b, name + ".")
        elif a != b:
            out.append(name)
    return out
