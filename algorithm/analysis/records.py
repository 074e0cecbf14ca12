"""metrics.jsonl read back: one JSON object a line, `step` and values by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from algorithm.errors import AnalysisError

Series = tuple[list[float], list[float]]     # steps, values
Records = list[dict[str, Any]]


def read_records(path: str | Path) -> Records:
    """The lines of a metrics.jsonl. A last line that a killed run left unfinished is dropped. Raises AnalysisError."""
    path = Path(path)
    try:
        lines = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not text'}") from None
    found: Records = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            if i == len(lines) - 1:
                break
            raise AnalysisError(f"{path}, line {i + 1}, is not JSON, so no training wrote it: remove the line") from None
        if not isinstance(value, dict) or not isinstance(value.get("step"), (int, float)):
            raise AnalysisError(f"{path}, line {i + 1}: expected an object with a step, found {line[:40]!r}")
        found.append(value)
    return found


def series(records: Iterable[Mapping[str, Any]], name: str) -> Series:
    """(steps, values) of a metric in the order of the steps; of a step that is there twice, the later line."""
    last = {float(r["step"]): float(r[name]) for r in records if _is_number(r.get(name))}
    return sorted(last), [last[s] for s in sorted(last)]


def latest(records: Iterable[Mapping[str, Any]], name: str) -> Any:
    """The value of the last line that has one, of any kind; None where there is none."""
    return next((r[name] for r in reversed(list(records)) if name in r), None)


def names(records: Iterable[Mapping[str, Any]], prefix: str = "") -> list[str]:
    """The metrics that begin with `prefix`, in the order of their first line."""
    return [n for n in dict.fromkeys(key for r in records for key in r) if n.startswith(prefix) and n != "step"]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
