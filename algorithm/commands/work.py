"""The work folder of a training by recipe: `output.dir`/`output.name`, one process's at a time.

    experiment.yaml   the resolved experiment; what makes the folder ours
    log.txt           what was said, with the time
    summary.json      of a finished training
    and what the training, the monitor and the report write

The same command goes on with the newest checkpoint there. A folder that is not surely a training's is refused, and
nothing that is not ours is ever removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import yaml

from algorithm.errors import AlgorithmError
from algorithm.experiment import Experiment, differences, settings_of
from algorithm.lock import Lock, Say
from algorithm.naming import wrong_name
from algorithm.textfile import read_mapping

EXPERIMENT, LOG, SUMMARY = "experiment.yaml", "log.txt", "summary.json"
OWN = (EXPERIMENT, LOG, SUMMARY, "metrics.jsonl", "wandb", "pictures", "report.html", "trace.safetensors", "plan.yaml",
       "checkpoints")
HEAD = "# The resolved experiment of this folder; `python -m algorithm train --config` reads it back.\n"


class WorkError(AlgorithmError):
    """The work folder cannot be used: another training's, another program's, or not writable."""


def work_path(experiment: Experiment) -> Path:
    """Where an experiment works. Raises WorkError for an impossible name."""
    data, recipe = experiment.data, experiment.recipe
    made = f"{experiment.model.name}-{data.name}-{recipe.optim.opt}-seed{recipe.seed}"
    name = re.sub(r"[^\w.+-]", "-", made) if experiment.output.name is None else experiment.output.name
    if wrong := wrong_name(name):
        raise WorkError(f"{wrong}: give the work folder a plain name with --experiment (output.name)")
    return Path(experiment.output.dir) / name


def finished(path: Path) -> dict[str, Any] | None:
    """The summary of a finished training; None where there is none, or it cannot be read."""
    try:
        summary = json.loads((path / SUMMARY).read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def stored(path: Path) -> dict[str, Any]:
    """The settings of the training in a work folder. Raises WorkError."""
    return read_mapping(path / EXPERIMENT, "experiment", WorkError)


class WorkFolder:
    """A work folder, locked; a context manager that frees it. `say` keeps each line in log.txt, too."""

    def __init__(self, experiment: Experiment, say: Say) -> None:
        """Raises WorkError, before anything is changed, where the folder cannot be had."""
        self.path, self._say = work_path(experiment), say
        self._lock = Lock(self.path.parent / f".{self.path.name}.lock", f"the work folder {self.path}", WorkError,
                          "--experiment")
        self._log: TextIO | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(say)
            self._prepare(experiment)
            self._log = (self.path / LOG).open("a", buffering=1, encoding="utf-8")
        except OSError as error:
            self._lock.release()
            raise WorkError(f"the work folder {self.path} cannot be written ({error.strerror}): choose another with "
                            "--output") from None
        except BaseException:
            self._lock.release()
            raise

    def _prepare(self, experiment: Experiment) -> None:
        known = self._known()
        if known is not None and experiment.output.fresh:
            self._clear()
        elif known is not None:
            check_same(self.path, known, settings_of(experiment))
        self.path.mkdir(exist_ok=True)
        write_text(self.path / EXPERIMENT, to_yaml(experiment))

    def _known(self) -> dict[str, Any] | None:
        """The settings of the training that is here; None where there is none. Raises WorkError for what is not ours."""
        if not os.path.lexists(self.path) or (self.path.is_dir() and not any(self.path.iterdir())):
            return None
        if self.path.is_symlink() or not self.path.is_dir() or not (self.path / EXPERIMENT).is_file():
            raise WorkError(f"{self.path} exists and is no work folder of a training (it has no {EXPERIMENT}); it is left "
                            "alone: choose another --experiment, or move it away")
        return stored(self.path)

    def _clear(self) -> None:
        for name in OWN:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def say(self, text: str) -> None:
        """To the console and into log.txt."""
        self._say(text)
        self.note(text)

    def note(self, text: str) -> None:
        """Into log.txt alone."""
        if self._log:
            self._log.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}\n")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The training is done: keep its summary."""
        write_text(self.path / SUMMARY, json.dumps(summary, indent=1, allow_nan=False) + "\n")

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.note(f"ended by {kind.__name__ if kind else ''}: {' '.join(str(error).split())}".rstrip(": "))
        if self._log:
            self._log.close()
        self._lock.release()


def to_yaml(experiment: Experiment) -> str:
    """The resolved experiment; `--config` reads it back."""
    return HEAD + str(yaml.safe_dump(settings_of(experiment), sort_keys=False, allow_unicode=True, width=120))


def check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise WorkError where a training under the settings `old` does not go on under `new`."""
    if told := differences(old, new):
        raise WorkError(f"{path} is a training of other settings ({told}): --fresh replaces it, --experiment NAME makes "
                        "another")


def write_text(path: Path, text: str) -> None:
    """A whole file or none. Raises OSError."""
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
