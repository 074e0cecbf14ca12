"""One piece of work in a thread of its own, beside the training; PyTorch and C code leave Python free for both."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")
GoOn = Callable[[], None]


class Stopped(Exception):
    """Raised by `go_on()` in work that nobody waits for any more."""


class Beside(Generic[T]):
    """Starts `work(go_on)`. The work calls `go_on()` now and then, which ends it when it is no longer wanted.

    A context manager: on leaving, the work is stopped if it still runs, and waited for.
    """

    def __init__(self, work: Callable[[GoOn], T], name: str = "beside") -> None:
        self._work = work
        self._stop = threading.Event()
        self._value: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._work(self._go_on)
        except BaseException as error:      # handed to whoever asks for the result
            self._error = error

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise Stopped

    def check(self, *_: Any) -> None:
        """Raises the work's error, if it has ended with one. Takes and ignores what a progress callback gets."""
        if self._error is not None:
            raise self._error

    def result(self) -> T:
        """Waits for the work. Raises its error."""
        self._thread.join()
        self.check()
        return cast(T, self._value)

    def __enter__(self) -> Beside[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
