"""The run folder: built beside its final place, moved there whole, so that a stopped run leaves nothing half-written.

A stopped run's folder (`.<name>.partial`) is picked up again by the same command: its training checkpoint resumes.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from runtime.errors import ReportError


@dataclass
class RunFolder:
    """path: where files are written now; final: where the folder will be when the run is done."""

    path: Path
    final: Path

    @staticmethod
    def open(parent: str | Path, name: str, config: str) -> RunFolder:
        """config: the resolved configuration as text; a stopped run with another one is not resumed but dropped.

        Raises ReportError when the folder cannot be written.
        """
        safe = name.replace("/", "-")
        final = Path(parent) / safe
        path = final.with_name(f".{safe}.partial")
        try:
            path.mkdir(parents=True, exist_ok=True)
            known = path / "config.yaml"
            if known.is_file() and known.read_text() != config:
                shutil.rmtree(path)
                path.mkdir()
            known.write_text(config)
        except OSError as error:
            raise ReportError(f"the output folder {parent} cannot be written ({error.strerror}): "
                              "choose another with --output") from None
        return RunFolder(path, final)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """A refused run leaves nothing behind; one that was stopped while training can be resumed."""
        if self.path.exists() and not (self.path / "training.safetensors").exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def write_text(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def finish(self) -> Path:
        """Move the folder to its place and point `latest` at it; an older run of the same name is replaced."""
        old = self.final.with_name(f".{self.final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.final.exists():
            self.final.rename(old)
        self.path.rename(self.final)
        shutil.rmtree(old, ignore_errors=True)
        link = self.final.parent / "latest"
        try:
            if link.is_symlink() or not link.exists():
                fresh = link.with_name(".latest.new")
                fresh.unlink(missing_ok=True)
                os.symlink(self.final.name, fresh, target_is_directory=True)
                fresh.replace(link)
        except OSError:
            pass                        # no symbolic links here: the folder itself is what matters
        return self.final
