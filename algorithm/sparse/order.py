"""The order of merit as data: plan rules from the least to the most valuable, with ranges. Torch-free.

A count may be a range, "1..all", which stands for one plan a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from algorithm.errors import ConfigError
from algorithm.schema import parse
from algorithm.sparse.config import PlanConfig

# Deeper bias+LN first, then the Gram residual of the last block, attention columns, the MLP: docs/results.md has the
# measurements. The default order of `configs/recipes/merit_default.yaml`.
DEFAULT_MERIT: list[dict[str, Any]] = [
    {"n_bias_update": "0..all"},
    {"n_bias_update": "all", "n_gram_update": 1, "gram_rank": 8},
    {"n_bias_update": "all", "n_gram_update": 1, "gram_rank": 16},
    {"n_bias_update": "all", "n_weight_update": {"attention": "1..all"}, "weight_update_ratio": 0.25},
    {"n_bias_update": "all", "n_weight_update": {"attention": "all", "mlp": "1..all"}, "weight_update_ratio": 0.25},
    {"n_bias_update": "all", "n_weight_update": "all", "weight_update_ratio": 0.5},
    {"n_bias_update": "all", "n_weight_update": "all", "weight_update_ratio": 1.0},
    {"enable_backward_config": False},
]


def with_always(rules: Sequence[Mapping[str, Any]], always: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Each rule with the keys that every candidate gets; the full update has no use for them."""
    return [{**(always or {}), **rule} if rule.get("enable_backward_config", True) else dict(rule) for rule in rules]


def check_merit(rules: Sequence[Mapping[str, Any]] | None, always: Mapping[str, Any] | None) -> None:
    """Raise ConfigError for a key or value of an order of merit that no model can have."""
    for i, rule in enumerate(with_always(DEFAULT_MERIT if rules is None else rules, always)):
        low, _ = _bounds(rule, i)
        parse(PlanConfig, _fill_range(rule, int(low)), f"merit[{i}]")


def expand_merit(rules: Sequence[Mapping[str, Any]], depth: int) -> list[PlanConfig]:
    """Plan rules with ranges ("1..all") -> one PlanConfig a value, in order."""
    configs = []
    for i, rule in enumerate(rules):
        low, high = _bounds(rule, i)
        for n in range(int(low), (depth if high == "all" else int(high)) + 1):
            configs.append(parse(PlanConfig, _fill_range(rule, n), f"merit[{i}]"))
    return configs


def _bounds(rule: Mapping[str, Any], i: int) -> tuple[str, str]:
    """The ends of the range in the i-th rule; "0", "0" where it has none. Raises ConfigError for more than one."""
    ranges = _find_ranges(rule)
    if len(ranges) > 1:
        raise ConfigError(f"merit[{i}] has two ranges ({ranges[0]}, {ranges[1]}); use one a rule")
    low, _, high = (ranges[0] if ranges else "0..0").partition("..")
    return low, high


def _is_range(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+\.\.(\d+|all)", value) is not None


def _find_ranges(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [r for v in value.values() for r in _find_ranges(v)]
    return [value] if _is_range(value) else []


def _fill_range(value: Any, n: int) -> Any:
    if isinstance(value, Mapping):
        return {k: _fill_range(v, n) for k, v in value.items()}
    return n if _is_range(value) else value
