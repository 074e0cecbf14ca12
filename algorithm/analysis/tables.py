"""A small table of text, for a terminal and for a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True)
class Table:
    """Column names and rows of text; the first column is left-aligned, the others are right-aligned figures."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> RichTable:
        table = RichTable(title=Text(self.title), title_justify="left")     # brackets in a name are no markup
        for i, name in enumerate(self.columns):
            table.add_column(Text(name), justify="right" if i else "left", no_wrap=not i)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def markdown(self) -> str:
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *self.rows]
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def figure(value: float | None, digits: int = 4) -> str:
    """A short readable number; what is not defined is a dash."""
    return "–" if value is None else "∞" if value == float("inf") else f"{value:.{digits}g}" if isfinite(value) else "–"


def share(value: float | None) -> str:
    """A fraction of 1 in percent."""
    return "–" if value is None else f"{100 * value:.1f} %"
