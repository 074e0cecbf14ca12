"""A progress bar on the terminal; a plain line now and then where the output is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    import numpy as np


class Ticker:
    """`done(n, note)` sets how far the work is; usable as `on_batch`, and through `step` as `on_step`."""

    def __init__(self, label: str, total: int, bar: Any, task: Any) -> None:
        self.label, self.total, self._bar, self._task = label, total, bar, task
        self._shown = 0
        self._loss = 0.0

    def done(self, count: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=count, note=note)
        elif count == self.total or count - self._shown >= max(1, self.total // 5):
            self._shown = count
            print(f"{self.label}: {count}/{self.total} {note}".rstrip(), file=sys.stderr, flush=True)

    def __call__(self, count: int) -> None:
        self.done(count)

    def step(self, step: int, loss: float) -> None:
        """For `finetune(on_step=...)`: shows a running mean of the loss."""
        self._average(step, loss)
        self.done(step + 1, f"loss {self._loss:.3f}")

    def resume(self, losses: Sequence[float] | np.ndarray) -> None:
        """For `finetune(on_resume=...)`: the running mean goes on where it was."""
        for step, loss in enumerate(losses):
            self._average(step, float(loss))
        self.done(len(losses), f"loss {self._loss:.3f}")

    def _average(self, step: int, loss: float) -> None:
        self._loss = loss if step == 0 else 0.98 * self._loss + 0.02 * loss


@contextmanager
def progress(label: str, total: int, console: Console | None = None) -> Iterator[Ticker]:
    """`with progress("training", steps) as bar: finetune(..., on_step=bar.step)`.

    console: the one that other lines are printed to meanwhile, so that they do not cut through the bar.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield Ticker(label, total, None, None)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False))
    with Progress(*columns, console=console) as bar:
        yield Ticker(label, total, bar, bar.add_task(label, total=total, note=""))
