"""The run folder: built beside its final place, moved there whole, so that a stopped run leaves nothing half-written.

    <name>            a finished run, known by its marker (`runtime.marker`)
    .<name>.partial   a run under way, or stopped: the same command goes on with its training
    .<name>.lock      who works on it now: one process at a time
    .<name>.old       the finished run that is being replaced, for the moment between two renames

What is not surely ours is never replaced or deleted. A finished run is replaced only when asked (`fresh`), and only
while it holds nothing but what it wrote; else it is kept as <name>.old-1, -2, ... A partial folder that is damaged, or of
settings under which its training cannot go on, is set aside as .<name>.damaged-1 or .<name>.stopped-1.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from algorithm.lock import Lock, Say
from algorithm.naming import wrong_name
from runtime.errors import ReportError
from runtime.marker import MARKER, Marker, differences, remove, tree, written

TRAINING = "training.safetensors"           # the checkpoint that a stopped training goes on from
KEPT = (TRAINING, "metrics.jsonl", "wandb")     # what a run that goes on does not write anew
Continues = Callable[[Mapping[str, Any], Mapping[str, Any]], bool]


@dataclass
class RunFolder:
    """path: where files are written now; final: where the folder will be when the run is done; done: it is already."""

    path: Path
    final: Path
    marker: Marker
    lock: Lock
    say: Say
    fresh: bool = False
    done: bool = False
    _names: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def open(parent: str | Path, name: str, settings: Mapping[str, Any], *, continues: Continues | None = None,
             fresh: bool = False, say: Say = print) -> RunFolder:
        """The folder of a run, locked; a context manager that frees it.

        settings: the resolved configuration as plain data. A finished run of the same settings is `done`, unless
        `fresh`. continues(old, new): whether a training under the old settings goes on under the new ones (None: only
        under the same). say: told what becomes of an older folder.
        Raises ReportError, before anything is changed, where the name or the folder cannot be had.
        """
        check_name(name)
        if not str(parent) or "\0" in str(parent):
            raise ReportError("the output folder has no name, or an impossible one: give one with --output")
        parent = Path(parent)
        path, final = parent / f".{name}.partial", parent / name
        lock = Lock(parent / f".{name}.lock", f"the run {final}", ReportError)
        folder = RunFolder(path, final, Marker(name, dict(settings)), lock, say, fresh)
        try:
            folder.check_final()
            parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(say)
            folder.repair()
            folder.prepare(continues or (lambda old, new: old == new))
        except OSError as error:
            lock.release()
            raise ReportError(f"the output folder {parent} cannot be written ({error.strerror}): "
                              "choose another with --output") from None
        except BaseException:
            lock.release()
            raise
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """A refused run leaves nothing behind; one that was stopped while training can be resumed."""
        try:
            if not self.done and self.path.is_dir() and not (self.path / TRAINING).exists():
                self.remove_own()
        except OSError:
            pass                        # what cannot be removed is cleared by the next run of this name
        finally:
            self.lock.release()

    # -- writing -----------------------------------------------------------------------------------
    def file(self, name: str) -> Path:
        """Where the run writes this file or folder; it is the run's from now on. Threads may ask. Raises ReportError."""
        with self._names:
            if name not in self.marker.names:
                self.marker.names.append(name)
                self.save_marker()
        return self.path / name

    def write_text(self, name: str, text: str) -> None:
        """Raises ReportError where it cannot be written."""
        try:
            self.file(name).write_text(text)
        except OSError as error:
            raise self.unwritable(error) from None

    def save_marker(self) -> None:
        try:
            self.marker.write(self.path)
        except OSError as error:
            raise self.unwritable(error) from None

    def unwritable(self, error: OSError) -> ReportError:
        return ReportError(f"cannot write into {self.path} ({error.strerror}): make room there, or choose another output "
                           "folder with --output")

    # -- before the work ---------------------------------------------------------------------------
    def check_final(self) -> Marker | None:
        """The marker of a finished run in our place; None where nothing is. Raises ReportError for anything else."""
        if not os.path.lexists(self.final):
            return None
        try:
            marker = Marker.read(self.final)
        except ValueError as error:
            raise ReportError(f"{self.final} exists and is not the folder of a run ({error}); it is left alone: give this "
                              "run another --name, or move it away") from None
        if marker.name != self.marker.name or not marker.finished:
            raise ReportError(f"{self.final} holds the run {marker.name!r}, not a finished {self.marker.name!r}; it is left "
                              "alone: give this run another --name, or move it away")
        return marker

    def repair(self) -> None:
        """Finishes the move into place that a crash cut short."""
        old = self.old
        if (marker := self.partial()) and marker.finished:
            self.move_in()
        elif os.path.lexists(old) and not os.path.lexists(self.final):
            old.rename(self.final)
            self.check_final()
        if os.path.lexists(old):
            self.aside(old, f"{self.final.name}.old", "an older run of this name is kept")

    def prepare(self, continues: Continues) -> None:
        """Goes on with a stopped run, or with the training of a finished one, or starts."""
        settings, finished = self.marker.settings, self.check_final()
        if finished and not self.fresh and finished.settings == settings:
            self.path, self.marker, self.done = self.final, finished, True
            return
        if os.path.lexists(self.path) and not self.resume(continues):
            self.path.mkdir()
        elif not os.path.lexists(self.path):
            self.path.mkdir()
            if finished and not self.fresh:
                self.take_over(finished, continues)
        self.save_marker()

    def resume(self, continues: Continues) -> bool:
        """Of a partial folder keep what its training goes on from; False: it had to be moved out of the way."""
        try:
            if self.path.is_dir() and not self.path.is_symlink() and not any(self.path.iterdir()):
                return True
            marker = self.partial()
            if marker is None:
                raise ValueError(f"{self.path / MARKER} cannot be read")
            check_training(self.path)
            changed = differences(marker.settings, self.marker.settings)
            if not self.fresh and not continues(marker.settings, self.marker.settings):
                self.aside(self.path, f".{self.final.name}.stopped", f"a stopped run of this name had other settings "
                           f"({', '.join(changed[:4])}); it is kept")
                return False
            for name in marker.names:
                for path in written(self.path, name):
                    if self.fresh or path.name not in KEPT:
                        remove(path)
            self.marker.created = marker.created
            self.marker.names = [n for n in marker.names if os.path.lexists(self.path / n)]
        except (OSError, ValueError) as error:
            self.aside(self.path, f".{self.final.name}.damaged",
                       f"a stopped run of this name is damaged ({error}); it is kept")
            return False
        return True

    def take_over(self, finished: Marker, continues: Continues) -> None:
        """A finished run of other settings stays; its training goes on here where that is the same training."""
        changed = ", ".join(differences(finished.settings, self.marker.settings)[:4])
        training = self.final / TRAINING
        if continues(finished.settings, self.marker.settings) and training.is_file():
            for name in KEPT:
                if (self.final / name).is_file():
                    shutil.copy2(self.final / name, self.path / name)
                    self.marker.names.append(name)
            self.say(f"{self.final} is finished with another {changed}; its training goes on")
        else:
            self.say(f"{self.final} is finished with another {changed}; it will be kept beside this one")

    def partial(self) -> Marker | None:
        """The marker of the partial folder; None where it has none that can be read."""
        try:
            marker = Marker.read(self.path)
        except ValueError:
            return None
        return marker if marker.name == self.marker.name else None

    # -- after the work ----------------------------------------------------------------------------
    def finish(self) -> Path:
        """Move the folder to its place and point `latest` at it. Raises ReportError; the finished run is kept then."""
        try:
            self.marker.finish(self.path)
            self.move_in()
        except ReportError as error:
            raise ReportError(f"{error}; the finished run waits in {self.path}") from None
        except OSError as error:
            raise ReportError(f"cannot move {self.path} to {self.final} ({error.strerror}): the same command tries again"
                              ) from None
        self.path, self.done = self.final, True
        return self.final

    def move_in(self) -> None:
        """partial -> final; a crash in between is repaired by the next run. Raises ReportError where the place is taken
        by what is not ours."""
        finished = self.check_final()
        if os.path.lexists(self.old):
            self.aside(self.old, f"{self.final.name}.old", "an older run of this name is kept")
        if finished:
            self.final.rename(self.old)
        self.path.rename(self.final)
        if finished:
            foreign = finished.foreign(self.old)
            if self.fresh and not foreign:
                remove(self.old)
            else:
                why = f" for what else was in it ({', '.join(foreign[:3])})" if self.fresh else ""
                self.aside(self.old, f"{self.final.name}.old", f"the older run of this name is kept{why}")
        self.link_latest()

    @property
    def old(self) -> Path:
        return self.final.with_name(f".{self.final.name}.old")

    def remove_own(self) -> None:
        """A partial folder without what the run put there; gone where nothing else is in it."""
        for name in self.marker.names:
            for path in written(self.path, name):
                remove(path)
        remove(self.path / (MARKER + ".new"))
        if tree(self.path) in ([self.path / MARKER], [self.path]):
            remove(self.path)

    def aside(self, path: Path, name: str, why: str) -> None:
        """Renames to the first free <name>-1, -2, ... and says so."""
        number = 1
        while os.path.lexists(self.final.with_name(f"{name}-{number}")):
            number += 1
        path.rename(self.final.with_name(f"{name}-{number}"))
        self.say(f"{why} as {self.final.with_name(f'{name}-{number}')}")

    def link_latest(self) -> None:
        """`latest` is ours where it is a link to a neighbour; anything else of that name is left alone."""
        link = self.final.with_name("latest")
        if os.path.lexists(link) and not (link.is_symlink() and ours(Path(os.readlink(link)), link)):
            self.say(f"{link} is not a link to a run; it is left alone")
            return
        new = self.final.with_name(f".latest.{os.getpid()}")
        try:
            os.symlink(self.final.name, new, target_is_directory=True)
            new.replace(link)
        except OSError:
            new.unlink(missing_ok=True)     # no symbolic links here: the folder itself is what matters


def ours(target: Path, link: Path) -> bool:
    """Whether a link `latest` was made by a run: it names a neighbour that is a run, or that is gone."""
    folder = link.with_name(target.name)
    return target.parts == (target.name,) and (not os.path.lexists(folder) or (folder / MARKER).is_file())


def check_name(name: str) -> None:
    """Raise ReportError unless a run's name is one plain, visible file name."""
    if wrong := wrong_name(name):
        raise ReportError(f"{wrong}: give the run a plain name with --name (output.name)")


def check_training(folder: Path) -> None:
    """Raise ValueError where the training checkpoint of a folder cannot be read."""
    path = folder / TRAINING
    if not os.path.lexists(path):
        return
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(str(path), framework="np") as file:
            file.metadata()
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path.name}: {error}") from None
