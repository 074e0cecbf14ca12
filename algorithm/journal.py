"""What the job says while it works, and how long each stage took."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text


def plain_line(text: object) -> str:
    """Text of any origin as one printable line: what is not printable (escapes of a terminal, too) is written out."""
    lines = (" ".join(line.split()) for line in str(text).splitlines())
    joined = "; ".join(line for line in lines if line)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in joined)


class Journal:
    """`say` prints a line with the seconds since the start; `stage` times what it is around. Threads may share one.

    seconds: name of a stage -> wall seconds, in the order of their ends.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.start = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self._main = threading.current_thread()
        self._beside: set[str] = set()

    def say(self, text: str) -> None:
        """Markup in the text is text."""
        passed = Text(f"{time.perf_counter() - self.start:6.1f} s", style="dim")
        self.console.print(passed, Text(" " + plain_line(text)), soft_wrap=True)

    def show(self, table: Table) -> None:
        """The table on the standard output; where that is full or gone, a line says so instead."""
        console = Console()
        try:
            with console.capture() as captured:         # rich itself ends the process where a pipe is broken
                console.print(table)
            print(captured.get(), end="", flush=True)
        except OSError as error:
            self.say(f"the table cannot be printed ({error.strerror or error}); the report holds it")
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the old one would fail once more when Python ends

    @contextmanager
    def stage(self, name: str, text: str = "") -> Iterator[None]:
        """Say the text, then time what happens until the end of the block."""
        if text:
            self.say(text)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)
            if threading.current_thread() is not self._main:
                self._beside.add(name)

    def table(self) -> Table:
        """Stages and seconds; those that ran beside others are marked."""
        table = Table(title="seconds", title_justify="left", show_header=False)
        table.add_column(style="bold")
        table.add_column(justify="right")
        for name, seconds in self.seconds.items():
            table.add_row(name + (" (beside)" if name in self._beside else ""), f"{seconds:.1f}")
        table.add_row("all", f"{time.perf_counter() - self.start:.1f}")
        return table


def refuse(error: object, what: str = "error") -> None:
    """An error's one line on the standard error output."""
    print(f"{what}: {plain_line(error)}", file=sys.stderr)
