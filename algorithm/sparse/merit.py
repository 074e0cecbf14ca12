"""The best plan that fits a budget. Costs come through a function; nothing here knows a compiler.

The order of merit is a list of plan rules from the least to the most valuable: of the plans that fit, the last one
wins. A count may be a range, "1..all", which stands for one plan a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from algorithm.errors import ConfigError
from algorithm.schema import parse
from algorithm.sparse.config import PlanConfig
from algorithm.sparse.plan import UpdatePlan
from algorithm.sparse.resolve import parameter_shapes, resolve_plan

Cost = Callable[[UpdatePlan], int | None]
BYTES_PER_NUMBER = 4

# Deeper bias+LN first, then attention columns, then the MLP. The default order of `configs/merit/default.yaml`.
DEFAULT_MERIT: list[dict[str, Any]] = [
    {"n_bias_update": "0..all"},
    {"n_bias_update": "all", "n_weight_update": "1..all", "vit_layer_types": ["attention", "head"],
     "weight_update_ratio": 0.25},
    {"n_bias_update": "all", "n_weight_update": "1..all", "vit_layer_types": ["attention", "mlp", "head"],
     "weight_update_ratio": 0.25},
    {"n_bias_update": "all", "n_weight_update": "all", "vit_layer_types": ["attention", "mlp", "head"],
     "weight_update_ratio": 0.5},
    {"n_bias_update": "all", "n_weight_update": "all", "vit_layer_types": ["attention", "mlp", "head"],
     "weight_update_ratio": 1.0},
    {"enable_backward_config": False},
]


@dataclass
class Candidate:
    """A plan that was asked for its cost; `bytes` None: not asked, because its weights alone exceed the budget."""

    plan: UpdatePlan
    trained_parameters: int
    bytes: int | None


@dataclass
class SearchResult:
    """`best` None when nothing fits; `smallest` is then the plan with the fewest bytes.

    `next_up` is the cheapest plan of more merit than `best`, which did not fit.
    """

    budget: int
    best: Candidate | None
    smallest: Candidate | None
    next_up: Candidate | None
    tried: list[Candidate] = field(default_factory=list)


def expand_merit(rules: Sequence[Mapping[str, Any]], depth: int) -> list[PlanConfig]:
    """Plan rules with ranges ("1..all") -> one PlanConfig a value, in order."""
    configs = []
    for i, rule in enumerate(rules):
        if not isinstance(rule, Mapping):
            raise ConfigError(f"merit[{i}] must be a mapping of plan keys, found {type(rule).__name__}")
        ranged = [k for k, v in rule.items() if isinstance(v, str) and re.fullmatch(r"\d+\.\.(\d+|all)", v)]
        if len(ranged) > 1:
            raise ConfigError(f"merit[{i}] has two ranges ({ranged[0]}, {ranged[1]}); use one a rule")
        if not ranged:
            configs.append(parse(PlanConfig, dict(rule), f"merit[{i}]"))
            continue
        low, high = rule[ranged[0]].split("..")
        for n in range(int(low), (depth if high == "all" else int(high)) + 1):
            configs.append(parse(PlanConfig, {**rule, ranged[0]: n}, f"merit[{i}]"))
    return configs


def candidate_plans(model: nn.Module, rules: Sequence[Mapping[str, Any]] | None = None,
                    always: Mapping[str, Any] | None = None) -> list[UpdatePlan]:
    """The plans of an order of merit for a model, least valuable first; the same plan twice is kept once.

    always: plan keys that every candidate gets (for example weight_select_criteria, n_gram_update).
    """
    depth = len(model.blocks)  # type: ignore[arg-type]
    merged = [{**(always or {}), **rule} for rule in (DEFAULT_MERIT if rules is None else rules)]
    plans: dict[str, UpdatePlan] = {}
    for config in expand_merit(merged, depth):
        plan = resolve_plan(config, model)
        key = str(sorted(plan.parameters.items()))
        plans.pop(key, None)
        plans[key] = plan
    return list(plans.values())


def search(plans: Sequence[UpdatePlan], model: nn.Module, cost: Cost, budget: int,
           progress: Callable[[Candidate], None] | None = None) -> SearchResult:
    """Walk the order of merit from its best end and stop at the first plan that fits.

    cost: plan -> bytes of RAM, or None where it cannot be compiled. Plans whose trained weights alone exceed the
    budget are not asked for.
    """
    shapes = parameter_shapes(model)
    tried: list[Candidate] = []
    best = None
    for plan in reversed(plans):
        count = plan.trained_count(shapes)
        asked = count * BYTES_PER_NUMBER <= budget
        candidate = Candidate(plan, count, cost(plan) if asked else None)
        tried.append(candidate)
        if progress:
            progress(candidate)
        if candidate.bytes is not None and candidate.bytes <= budget:
            best = candidate
            break
    known = [c for c in tried if c.bytes is not None]
    if best is None and not known and plans:  # the budget is below any plan's weights: still say what is possible
        known = [Candidate(p, p.trained_count(shapes), cost(p)) for p in plans[:1]]
        tried += known
        known = [c for c in known if c.bytes is not None]
    smallest = min(known, key=_bytes, default=None)
    above = [c for c in known if c is not best and c.bytes is not None and c.bytes > budget]
    return SearchResult(budget, best, smallest, min(above, key=_bytes, default=None), tried)


def _bytes(candidate: Candidate) -> int:
    return candidate.bytes or 0
