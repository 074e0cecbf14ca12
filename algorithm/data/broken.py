"""Images that cannot be read: named once, counted, and refused beyond a limit."""

from __future__ import annotations

import sys
from collections.abc import Callable

from algorithm.errors import DataError

Warn = Callable[[str], None]
Notes = list[tuple[str, str, str]]  # of broken images: path, reason, what stands for it


def to_stderr(text: str) -> None:
    """How a warning is told where nobody else takes it."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class BrokenImage(DataError):
    """One image cannot be read. Attributes: ``path``, ``reason``."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"image {path} is corrupt or unreadable ({reason}): remove or replace it")
        self.path, self.reason = path, reason


class Broken:
    """The unreadable images that one part of a data set was found to have.

    found: path -> reason. limit: how many are tolerated.
    """

    def __init__(self, name: str, limit: int, warn: Warn) -> None:
        self.name, self.limit, self.warn = name, limit, warn
        self.found: dict[str, str] = {}

    def __reduce__(self) -> tuple[type[Broken], tuple[str, int, Warn]]:
        return Broken, (self.name, self.limit, to_stderr)  # a worker's copy counts for nobody

    def add_all(self, notes: Notes) -> None:
        """Count broken images, each once, and say what stands for them. Raises DataError beyond `limit`."""
        new = {path: (reason, instead) for path, reason, instead in notes if path not in self.found}
        self.found |= {path: reason for path, (reason, _) in new.items()}
        if len(self.found) > self.limit:
            raise DataError(self.refusal())
        for path, (reason, instead) in new.items():
            self.warn(f"image {path} is corrupt or unreadable ({reason}); {instead} ({len(self.found)} of at most "
                      f"{self.limit} in {self.name})")

    def refusal(self) -> str:
        """What is said beyond the limit."""
        if len(self.found) == 1:
            (path, reason), = self.found.items()
            return (f"image {path} is corrupt or unreadable ({reason}): remove or replace it, or tolerate some with "
                    "data.max_broken")
        named = ", ".join(list(self.found)[:5]) + (", ..." if len(self.found) > 5 else "")
        return (f"{len(self.found)} images of {self.name} are corrupt or unreadable, data.max_broken allows {self.limit}: "
                f"remove or replace them, or allow more ({named})")
