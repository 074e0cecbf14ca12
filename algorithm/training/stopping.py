"""A stop (Ctrl-C) between two steps instead of within one, so that what was trained can be saved and goes on later."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_between_steps() -> Iterator[Callable[[], None]]:
    """Gives a function that raises KeyboardInterrupt once a stop was asked for; a second Ctrl-C stops at once.

    Only where Python's own handling of Ctrl-C is in force, which is so in the main thread of a program.
    """
    asked = threading.Event()
    usual = signal.getsignal(signal.SIGINT)
    mine = threading.current_thread() is threading.main_thread() and usual is signal.default_int_handler

    def ask(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, usual)

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    if mine:
        signal.signal(signal.SIGINT, ask)
    try:
        yield check
    finally:
        if mine:
            signal.signal(signal.SIGINT, usual)
