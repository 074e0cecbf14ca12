"""A stop (Ctrl-C, or the SIGTERM of torchrun, a scheduler or a shutdown) between two steps instead of within one, so that
what was trained can be saved and goes on later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_between_steps() -> Iterator[Callable[[], None]]:
    """Gives a function that raises KeyboardInterrupt once a stop was asked for; a second request stops at once.

    Only of signals whose usual handling is in force, which is so in the main thread of a program.
    """
    asked = threading.Event()
    here = threading.current_thread() is threading.main_thread()
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    mine = {number: handler for number, handler in usual.items()
            if here and signal.getsignal(number) is handler}

    def restore() -> None:
        for number, handler in mine.items():
            signal.signal(number, handler)

    def ask(number: int, frame: Any) -> None:
        asked.set()
        restore()

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    for number in mine:
        signal.signal(number, ask)
    try:
        yield check
    finally:
        restore()
