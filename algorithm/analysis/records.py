"""metrics.jsonl read back: one JSON object a line, `step` and values by name.

Numbers are numbers; histograms, pictures and confusion matrices are the plain mappings that the monitor writes
({"counts", "edges"}, {"picture"}, {"classes", "cells"}).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithm.errors import AnalysisError

Records = Mapping[str, Sequence[tuple[int, Any]]]   # metric -> (step, value), in the order of the file
Series = tuple[list[float], list[float]]            # steps, values


def read_records(path: str | Path) -> dict[str, list[tuple[int, Any]]]:
    """The metrics of a file. A last line that a killed run left unfinished is dropped. Raises AnalysisError."""
    path = Path(path)
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    found: dict[str, list[tuple[int, Any]]] = {}
    for i, line in enumerate(lines[:-1], 1):
        try:
            values = json.loads(line)
            step = int(values.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise AnalysisError(f"{path}, line {i}, is no record of a step, found {line[:40]!r}: no training wrote it; "
                                "remove the line") from None
        for name, value in values.items():
            found.setdefault(name, []).append((step, value))
    return found


def series(records: Records, name: str) -> Series:
    """(steps, values) of a metric in the order of the steps; of a step that is there twice, the later record. What is not
    a finite number is left out."""
    last = {float(step): float(value) for step, value in records.get(name, ()) if _is_number(value)}
    return sorted(last), [last[s] for s in sorted(last)]


def latest(records: Records, name: str) -> Any:
    """The value of the highest step; None where there is none."""
    found = records.get(name)
    return max(found, key=lambda record: record[0])[1] if found else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
