"""Metrics of a run: a JSON-lines file, and Weights & Biases (offline needs neither login nor network)."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from algorithm.monitor.config import MonitorConfig


class Monitor:
    """`log(step, loss=..., ...)` to wherever the configuration says; a context manager that closes what it opened."""

    def __init__(self, config: MonitorConfig, run_dir: str | Path, name: str = "",
                 run_config: dict[str, Any] | None = None) -> None:
        self._file = None
        self._wandb: Any = None
        run_dir = Path(run_dir)
        if config.jsonl or config.wandb != "off":
            run_dir.mkdir(parents=True, exist_ok=True)
        if config.jsonl:
            self._file = (run_dir / "metrics.jsonl").open("a", buffering=1)
        if config.wandb != "off":
            import wandb

            self._wandb = wandb.init(project=config.project, name=name or None, dir=str(run_dir), config=run_config,
                                     mode=config.wandb, settings=wandb.Settings(silent=True))

    def log(self, step: int, **values: float | int | str) -> None:
        """Record values of a step."""
        if self._file:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._wandb:
            self._wandb.log(values, step=step)

    def close(self) -> None:
        if self._file:
            self._file.close()
            self._file = None
        if self._wandb:
            self._wandb.finish()
            self._wandb = None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
