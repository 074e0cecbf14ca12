"""Golden figures: what the compiler reaches today, kept as JSON, below which no change may fall."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Figures:
    """Compares figures with those in a folder of JSON files ({key: {figure: value}}).

    refresh: write the present figures where they are no worse. To take worse ones knowingly, delete the entry first.
    """

    def __init__(self, folder: Path, refresh: bool) -> None:
        self.folder, self.refresh = folder, refresh

    def read(self, name: str) -> dict[str, Entry]:
        path = self.folder / name
        found: dict[str, Entry] = json.loads(path.read_text()) if path.is_file() else {}
        return found

    def compare(self, name: str, key: str, now: Entry, law: Callable[[Entry], None], marks: Entry | None = None) -> None:
        """law(golden) asserts that `now` is no worse than the golden entry.

        marks: what a new entry says besides, for a person to change: a refresh leaves it as it stands.
        """
        entries = self.read(name)
        before = entries.get(key)
        if before is not None:
            law(before)
        if self.refresh:
            entries[key] = {**(marks or {}), **(before or {}), **now}
            (self.folder / name).write_text(json.dumps(entries, indent=1) + "\n")
        else:
            assert before is not None, f"{name} has no figures of {key!r}: run pytest --update-golden"
