"""What a training shows: one live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

WINDOW = 20         # updates that the speed is the mean of
PLAIN_LINES = 50    # of a whole training, where there is no terminal
Say = Callable[[str], None]


class TrainingConsole:
    """What the engine tells while it trains: `begin`, then `update` after every update, `pause` around other work, and `say`
    for a line of its own. A context manager.

    say: told each line of its own (the console's and the log's).
    """

    def __init__(self, console: Console, say: Say, clock: Callable[[], float] = time.perf_counter) -> None:
        self._console, self.say, self._clock = console, say, clock
        self._live = Live(Text(""), console=console, transient=True, refresh_per_second=4) if console.is_terminal else None
        self._kept: dict[str, float] = {}
        self.begin(0, 0, 0)

    def begin(self, total: int, done: int, images: int) -> None:
        """total: updates of the whole training. done: those made before this start. images: of an update, a device."""
        self._total, self._images, self._shown = total, images, done
        self._times: deque[tuple[int, float]] = deque([(done, self._clock())], maxlen=WINDOW + 1)

    def update(self, done: int, lr: float, **values: float) -> None:
        """After an update: `done` updates are made. values: what stands at the end of the line, by name; what is left out
        stays as it was. A name that ends in "accuracy" is a share."""
        self._times.append((done, self._clock()))
        self._kept |= values
        if self._live:
            self._live.update(Text(self.line(done, lr), no_wrap=True, overflow="ellipsis"))
        elif done == self._total or done - self._shown >= max(1, self._total // PLAIN_LINES):
            self._shown = done
            self._console.print(Text(self.line(done, lr)), soft_wrap=True)

    def pause(self) -> None:
        """Time that passes until the next update (an evaluation, a checkpoint) is no training time."""
        self._times.clear()

    def line(self, done: int, lr: float) -> str:
        """`step 120/1000 (12 %)  845 images/s a device  ETA 0:01:23  lr 3.0e-04  loss 1.234  accuracy 45.2 %`."""
        parts = [f"step {done}/{self._total} ({100 * done // max(self._total, 1)} %)"]
        (first, start), (last, end) = self._times[0], self._times[-1]
        if last > first and end > start:
            updates = (last - first) / (end - start)
            parts += [f"{updates * self._images:.3g} images/s a device", f"ETA {clock_time((self._total - done) / updates)}"]
        parts.append(f"lr {lr:.1e}")
        return "  ".join([*parts, *(shown(name, value) for name, value in self._kept.items())])

    def __enter__(self) -> TrainingConsole:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()


def shown(name: str, value: float) -> str:
    """`accuracy 45.2 %`, `loss 1.234`."""
    return f"{name} {value:.1%}".replace("%", " %") if name.endswith("accuracy") else f"{name} {value:.4g}"


def clock_time(seconds: float) -> str:
    """h:mm:ss, with days where there are."""
    whole = round(seconds)
    days, rest = divmod(whole, 86_400)
    text = f"{rest // 3600}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days} d {text}" if days else text
