"""Whether a training that stopped under one configuration goes on under another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What no training step depends on, so that a stopped training goes on when it changes.
FREE = ("monitor", "compile.compiler", "compile.optimize", "data.test_images", "train.eval_batch",
        "train.checkpoint_every", "train.threads", "train.trace_steps", "train.trace")
LENGTH = ("train.epochs", "train.steps")


def continues(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """old, new: `RunConfig.settings()`. True when every step that was made would be made again: only
    settings of FREE differ, or more steps are asked for."""
    a, b = flat(old), flat(new)
    free = {k for k in {*a, *b} if any(k == f or k.startswith(f + ".") for f in FREE)}
    if any(a.get(k) != b.get(k) for k in {*a, *b} - free - {*LENGTH}):
        return False
    if a.get("train.epochs") != b.get("train.epochs") and (b.get("train.schedule") != "constant" or b.get("train.warmup")):
        return False        # the schedule spans the passes: with more of them, other rates from the first step on
    return all(_at_least(b.get(key), a.get(key)) for key in LENGTH)


def state_of(path: str | Path) -> list[int]:
    """[files, bytes, time of the last change in ns] of a file, or of all files at and below a folder."""
    top = Path(path)
    found = [p.stat() for p in (top.rglob("*") if top.is_dir() else [top]) if p.is_file()]
    return [len(found), sum(s.st_size for s in found), max((s.st_mtime_ns for s in found), default=0)]


def _at_least(new: Any, old: Any) -> bool:
    """None is without end."""
    return new is None or (old is not None and new >= old)


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} -> {"train.lr": 1}."""
    out: dict[str, Any] = {}
    for key, value in section.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return out
