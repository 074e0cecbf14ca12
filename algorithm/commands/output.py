"""Results of a command: tables on the standard output, JSON there or in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algorithm.commands.work import write_text
from algorithm.journal import Journal

if TYPE_CHECKING:
    from algorithm.analysis.tables import Table


def show(*tables: Table) -> None:
    """Each table on the standard output."""
    journal = Journal()
    for table in tables:
        journal.show(table.rich())


def emit_json(said: Mapping[str, Any] | list[Any], where: str | None) -> None:
    """To a file, whole or not at all; "-": the standard output; None: nowhere. Raises OSError."""
    if where is None:
        return
    text = json.dumps(said, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    if where == "-":
        print(text, end="", flush=True)
    else:
        write_text(Path(where), text)
