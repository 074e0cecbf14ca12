"""Metrics of a run: a JSON-lines file, and Weights & Biases (offline needs neither login nor network)."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from algorithm.errors import CheckpointError
from algorithm.monitor.config import LogConfig
from algorithm.monitor.values import Value, to_json, to_wandb
from algorithm.schema import one_line

if TYPE_CHECKING:
    import numpy as np


class Monitor:
    """`record(step, values)` to wherever the configuration says; a context manager that closes what it opened.

    metrics.jsonl begins anew with the first record, unless `keep_before` says where a training goes on, so that it has
    each metric of a step once. Trouble with Weights & Biases never ends a training: `warn` (None: stderr) gets one line,
    and the rest goes on without it. Its own GPU, CPU and memory readings come by themselves. Raises CheckpointError where
    metrics.jsonl cannot be written.
    """

    def __init__(self, config: LogConfig, run_dir: str | Path, name: str = "",
                 run_config: dict[str, Any] | None = None, warn: Callable[[str], None] | None = None) -> None:
        self.warn = warn or (lambda text: print(text, file=sys.stderr, flush=True))
        self.folder = Path(run_dir)
        self._path = self.folder / "metrics.jsonl"
        self._file: TextIO | None = None
        self._wandb: Any = None
        self._begun = False
        self._settings = (config, name, run_config)
        try:
            if config.jsonl or config.wandb != "off":
                self.folder.mkdir(parents=True, exist_ok=True)
            if config.jsonl:
                self._file = self._path.open("a", buffering=1)
        except OSError as error:
            raise self._unwritable(error) from None

    def keep_before(self, step: int) -> None:
        """Before the first record of a training that goes on at `step`: keep what metrics.jsonl has of the steps before.

        0 keeps nothing. Weights & Biases goes on with the run of the same folder.
        """
        self._begun = True
        if self._file:
            try:
                if step:
                    self._file.close()
                    _keep_lines_before(self._path, step)
                    self._file = self._path.open("a", buffering=1)
                else:
                    self._file.truncate(0)
            except OSError as error:
                self._drop_file()
                raise self._unwritable(error) from None
        if self._settings[0].wandb != "off":
            self._try(lambda: self._start(step))

    def _start(self, step: int) -> None:
        import wandb

        config, name, run_config = self._settings
        mode: Any = config.wandb
        remembered = self.folder / "wandb" / "id.txt"
        run_id = remembered.read_text().strip() if step and remembered.is_file() else secrets.token_hex(4)
        remembered.parent.mkdir(exist_ok=True)
        remembered.write_text(run_id)
        self._wandb = wandb.init(project=config.project, name=name or None, dir=str(self.folder), config=run_config,
                                 id=run_id, resume="allow" if mode == "online" else None, mode=mode,
                                 settings=wandb.Settings(silent=True))

    def _try(self, call: Callable[[], Any]) -> None:
        """Weights & Biases, or one line and no more of it: the training is worth more than its log."""
        try:
            call()
        except Exception as error:  # its own classes, the network's, the file system's
            self._wandb = None
            self.warn(f"Weights & Biases is off from here on ({one_line(error)}); the training goes on")

    def _unwritable(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"cannot write {self._path}: {error.strerror or error}")

    def log(self, step: int, **values: float | int | str) -> None:
        """`record` for values whose names are words."""
        self.record(step, values)

    def record(self, step: int, values: Mapping[str, Value]) -> None:
        """Write values of a step (0-based; steps ascend): one line of metrics.jsonl, one log of Weights & Biases."""
        if not self._begun:
            self.keep_before(0)
        if self._file:
            plain = {name: to_json(value, self.folder) for name, value in values.items()}
            try:
                self._file.write(json.dumps({"step": step, **plain}, allow_nan=False) + "\n")
            except OSError as error:
                self._drop_file()
                raise self._unwritable(error) from None
        if self._wandb:
            self._try(lambda: self._log(step, values))

    def _log(self, step: int, values: Mapping[str, Value]) -> None:
        import wandb

        self._wandb.log({name: to_wandb(wandb, name, value) for name, value in values.items()}, step=step)

    def resume(self, losses: Sequence[float] | np.ndarray) -> None:
        """For `finetune(on_resume=...)`: the losses of the steps before, from step 0 on."""
        for step, loss in enumerate(losses):
            self.record(step, {"loss": float(loss)})

    def picture_path(self, name: str, step: int) -> Path:
        """Where the picture of a metric and step goes, below pictures/ in the run folder; its folder is made."""
        path = self.folder / "pictures" / name / f"{step:08d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _drop_file(self) -> None:
        """Close after a failed write, which fails once more with what is still buffered."""
        file, self._file = self._file, None
        if file:
            with suppress(OSError):
                file.close()

    def close(self) -> None:
        """Close what was opened; further calls do nothing."""
        if self._file:
            file, self._file = self._file, None
            try:
                file.close()
            except OSError as error:
                raise self._unwritable(error) from None
        if self._wandb:
            self._try(self._finish)
            self._wandb = None

    def _finish(self) -> None:
        import wandb

        self._wandb.finish()
        wandb.teardown()  # its service writes the file on its own, and has written all of it only when it is gone

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _keep_lines_before(path: Path, step: int) -> None:
    """Leave the whole lines of steps before `step`, up to the first that is torn; the file is replaced at once."""
    aside = path.with_name(f".{path.name}.part")
    with path.open("rb") as old, aside.open("wb") as new:
        for line in old:
            try:
                kept = line.endswith(b"\n") and json.loads(line)["step"] < step
            except (ValueError, KeyError, TypeError):
                break
            if kept:
                new.write(line)
    os.replace(aside, path)
