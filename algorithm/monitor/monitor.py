"""Metrics of a run: a JSON-lines file, and Weights & Biases (offline needs neither login nor network)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from algorithm.errors import CheckpointError
from algorithm.monitor.config import MonitorConfig
from algorithm.schema import one_line

if TYPE_CHECKING:
    import numpy as np


class Monitor:
    """`log(step, loss=..., ...)` to wherever the configuration says; a context manager that closes what it opened.

    metrics.jsonl begins anew each time; `resume` puts in the steps of a training that goes on, so that it has each step
    once. Trouble with Weights & Biases never ends a training: `warn` (None: stderr) gets one line, and the rest
    goes on without it. Raises CheckpointError where metrics.jsonl cannot be written.
    """

    def __init__(self, config: MonitorConfig, run_dir: str | Path, name: str = "",
                 run_config: dict[str, Any] | None = None, warn: Callable[[str], None] | None = None) -> None:
        self._warn = warn or (lambda text: print(text, file=sys.stderr, flush=True))
        self._path = Path(run_dir) / "metrics.jsonl"
        self._file: TextIO | None = None
        self._wandb: Any = None
        try:
            if config.jsonl or config.wandb != "off":
                self._path.parent.mkdir(parents=True, exist_ok=True)
            if config.jsonl:
                self._file = self._path.open("w", buffering=1)
        except OSError as error:
            raise self._unwritable(error) from None
        if config.wandb != "off":
            self._try(lambda: self._start(config, name, run_config))

    def _start(self, config: MonitorConfig, name: str, run_config: dict[str, Any] | None) -> None:
        import wandb

        mode: Any = config.wandb
        self._wandb = wandb.init(project=config.project, name=name or None, dir=str(self._path.parent), config=run_config,
                                 mode=mode, settings=wandb.Settings(silent=True))

    def _try(self, call: Callable[[], Any]) -> None:
        """Weights & Biases, or one line and no more of it: the training is worth more than its log."""
        try:
            call()
        except Exception as error:  # its own classes, the network's, the file system's
            self._wandb = None
            self._warn(f"Weights & Biases is off from here on ({one_line(error)}); the training goes on")

    def _unwritable(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"cannot write {self._path}: {error.strerror or error}")

    def log(self, step: int, **values: float | int | str) -> None:
        """Record values of a step."""
        self._record(step, values)

    def _record(self, step: int, values: Mapping[str, float | int | str]) -> None:
        if self._file:
            try:
                self._file.write(json.dumps({"step": step, **values}) + "\n")
            except OSError as error:
                self._drop_file()
                raise self._unwritable(error) from None
        if self._wandb:
            self._try(lambda: self._wandb.log(dict(values), step=step))

    def resume(self, losses: Sequence[float] | np.ndarray) -> None:
        """For `finetune(on_resume=...)`: the losses of the steps before, from step 0 on."""
        for step, loss in enumerate(losses):
            self._record(step, {"loss": float(loss)})

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
            self._try(self._wandb.finish)
            self._wandb = None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
