"""The expansions by name, and what they are written with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
Expansion = Callable[..., Any]
EXPANSIONS: dict[str, Expansion] = {}
NOT_SEEN = -1e30            # added to the score of a masked key: exp gives exactly 0


def expansion(name: str) -> Callable[[Expansion], Expansion]:
    """Decorator: this is how `aten::<name>` is spelled out. The function takes proxies by the schema's names (`input` for
    `self`) and returns one, or None to leave the operation as it is."""
    def keep(function: Expansion) -> Expansion:
        EXPANSIONS[name] = function
        return function
    return keep


def shape_of(x: fx.Proxy) -> list[int]:
    """The shape of a proxy's value."""
    return list(x.node.meta["val"].shape)


def choose(condition: Any, yes: Any, no: Any) -> Any:
    """where(); numbers become constants of the other branch's shape."""
    like = next(v for v in (yes, no) if isinstance(v, fx.Proxy))
    full = [v if isinstance(v, fx.Proxy) else aten.full_like.default(like, float(v)) for v in (yes, no)]
    return aten.where.self(condition, *full)
