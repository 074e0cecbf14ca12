"""Memory budgets: bytes of read-write memory, decimal units (1 kb = 1,000 bytes)."""

from __future__ import annotations

import re

from algorithm.errors import BudgetParseError

NAMED = ("100kb", "150kb", "200kb", "256kb", "512kb", "1mb", "2mb", "5mb", "10mb")
_UNITS = {"": 1, "b": 1, "byte": 1, "bytes": 1, "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9,
          "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_budget(text: str | int) -> int:
    """Bytes of "2mb", "256 kB", "1.5 MiB", "500000 bytes", 2000000. Raises BudgetParseError."""
    if isinstance(text, bool):
        raise BudgetParseError(f"memory budget {text!r} is not a size: {_HELP}")
    match = re.fullmatch(r"\s*([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None:
        raise BudgetParseError(f"memory budget {str(text)!r} is not a size: {_HELP}")
    number, unit = match.group(1).replace("_", ""), match.group(2).lower()
    if unit not in _UNITS:
        raise BudgetParseError(f"memory budget {str(text)!r}: unknown unit {match.group(2)!r}: {_HELP}")
    size = float(number) * _UNITS[unit]
    if size < 1 or size > 1e12 or size != int(size):
        raise BudgetParseError(f"memory budget {str(text)!r} is not a whole number of bytes above 0: {_HELP}")
    return int(size)


_HELP = f"use one of {', '.join(NAMED)}, or a number with b, kb, mb, kib or mib"


def format_bytes(size: int) -> str:
    """"1,188,240 bytes"."""
    return f"{size:,} bytes"
