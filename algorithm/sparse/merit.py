"""The best plan that fits a budget. Costs come through a function; nothing here knows a compiler.

Of the plans of the order of merit (`order`) that fit, the last one wins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from algorithm.errors import ConfigError, PlanError
from algorithm.models.gram import can_have_gram_rank
from algorithm.sparse.config import PlanChoice
from algorithm.sparse.nearest import reduced_plans
from algorithm.sparse.order import DEFAULT_MERIT, expand_merit, with_always
from algorithm.sparse.plan import UpdatePlan
from algorithm.sparse.resolve import check_plan, parameter_shapes, resolve_plan

Cost = Callable[[UpdatePlan], int | None]
BYTES_PER_NUMBER = 4


@dataclass
class Candidate:
    """A plan that was asked for its cost; `bytes` None: not asked, because its weights alone exceed the budget."""

    plan: UpdatePlan
    trained_parameters: int
    bytes: int | None


@dataclass
class SearchResult:
    """`best` None when nothing fits; `smallest` is then the plan with the fewest bytes.

    `next_up` is the cheapest plan of more merit than `best`, which did not fit. `nearest`: where the plan was given
    and does not fit, the one that does and is nearest to it.
    """

    budget: int
    best: Candidate | None
    smallest: Candidate | None
    next_up: Candidate | None
    tried: list[Candidate] = field(default_factory=list)
    nearest: Candidate | None = None


def candidate_plans(model: nn.Module, rules: Sequence[Mapping[str, Any]] | None = None,
                    always: Mapping[str, Any] | None = None) -> list[UpdatePlan]:
    """The plans of an order of merit for a model, least valuable first; the same plan twice is kept once.

    Rules that ask for Gram or LoRA matrices or gates are left out where the model has none, or has the Gram residual at
    a lower rank or trained at a higher one, and those that train nothing.
    always: plan keys that every candidate gets (for example weight_select_criteria, n_gram_update), but the full update.
    """
    depth = len(model.blocks)  # type: ignore[arg-type]
    names = [n.rpartition(".")[2] for n in parameter_shapes(model)]
    needed = {"n_gram_update": "gram_b", "n_lora_update": "lora_b", "n_gate_update": "gate_w"}
    lacking = [k for k, p in needed.items() if p not in names]
    rules = [rule for rule in (DEFAULT_MERIT if rules is None else rules) if not any(rule.get(k) for k in lacking)]
    plans: dict[str, UpdatePlan] = {}
    for config in expand_merit(with_always(rules, always), depth):
        if config.gram_rank is not None and not can_have_gram_rank(model, config.gram_rank):
            continue
        plan = resolve_plan(config, model)
        if not plan.parameters:
            continue
        key = str((sorted(plan.parameters.items()), plan.gram_rank))
        plans.pop(key, None)
        plans[key] = plan
    return list(plans.values())


def weighted_plans(model: nn.Module, weights: Mapping[str, float]) -> list[UpdatePlan]:
    """Plans from explicit weights a tensor: the heaviest tensor alone, then the two heaviest, and so on (nested).

    weights: parameter name, or a name's ending ("norm1.bias"), -> weight; 0 or absent is never trained.
    """
    scores: dict[str, float] = {}
    for name in parameter_shapes(model):
        fitting = [k for k in weights if name == k or name.endswith("." + k)]
        if fitting:
            scores[name] = weights[max(fitting, key=len)]
    unused = [k for k in weights if not any(n == k or n.endswith("." + k) for n in scores)]
    if unused:
        raise ConfigError(f"merit weight {unused[0]!r} fits no parameter of the model")
    ranked = sorted((n for n, w in scores.items() if w > 0), key=lambda n: -scores[n])  # stable: model order
    return [UpdatePlan(dict.fromkeys(ranked[:k], "all"), f"the {k} heaviest tensors")
            for k in range(1, len(ranked) + 1)]


def search(plans: Sequence[UpdatePlan], model: nn.Module, cost: Cost, budget: int,
           progress: Callable[[Candidate], None] | None = None, nested: bool = False) -> SearchResult:
    """The last plan of the order of merit that fits.

    cost: plan -> bytes of RAM, or None where it cannot be compiled. Plans whose trained weights alone exceed the
    budget are not asked for. nested: every plan contains the one before it, so halving the list replaces walking it.
    """
    shapes = parameter_shapes(model)
    tried: dict[int, Candidate] = {}

    def ask(i: int, always: bool = False) -> bool:
        count = plans[i].trained_count(shapes)
        asked = always or count * BYTES_PER_NUMBER <= budget
        tried[i] = Candidate(plans[i], count, cost(plans[i]) if asked else None)
        if progress:
            progress(tried[i])
        size = tried[i].bytes
        return size is not None and size <= budget

    best: int | None = None
    lightest = min(range(len(plans)), key=lambda i: plans[i].trained_count(shapes), default=None)
    if lightest is not None and not ask(lightest, always=True) and tried[lightest].bytes is not None:
        pass    # the forward pass is common to all plans: what trains more numbers cannot need less
    elif nested:
        low, high = 0, len(plans)  # plans[:low] fit, plans[high:] do not
        while low < high:
            middle = (low + high) // 2
            if ask(middle):
                best, low = middle, middle + 1
            else:
                high = middle
    else:
        best = next((i for i in reversed(range(len(plans))) if ask(i)), None)
    known = [c for c in tried.values() if c.bytes is not None]
    above = [c for i, c in tried.items() if c in known and (c.bytes or 0) > budget and (best is None or i > best)]
    return SearchResult(budget, None if best is None else tried[best], min(known, key=_bytes, default=None),
                        min(above, key=_bytes, default=None), list(tried.values()))


def _bytes(candidate: Candidate) -> int:
    return candidate.bytes or 0


def choose_plan(choice: PlanChoice, model: nn.Module, cost: Cost, budget: int,
                progress: Callable[[Candidate], None] | None = None, least: Cost | None = None) -> SearchResult:
    """The plan of a run: the best of the order of merit that fits, or the one given by rule or file if it fits.

    cost: bytes of a plan in the search, where a limit of the time it takes may count; least: its bytes however slow it
    is (default: cost), for a plan that is given, and for the smallest plan of the search before all are refused.
    A given plan that does not fit leaves `best` None and itself in `tried`; `nearest` is then as much of it as fits by
    `cost` (`reduced_plans`); where no part of it does, `smallest` and `nearest` come from the order of merit.
    """
    least = least or cost
    if choice.choose == "auto":
        if choice.weights:
            found = search(weighted_plans(model, choice.weights), model, cost, budget, progress, nested=True)
        else:
            found = search(candidate_plans(model, choice.merit, choice.always), model, cost, budget, progress)
        return found if found.best else _slower(found, least)
    if choice.choose == "file":
        if choice.file is None:
            raise ConfigError("plan.choose=file needs plan.file (--plan FILE)")
        given = UpdatePlan.load(choice.file)
        check_plan(given, model)
    else:
        given = resolve_plan(choice.rule, model)
    if not given.parameters:
        raise PlanError("the plan trains nothing: name at least one parameter (plan.rule.vit_layer_types=[head] trains the "
                        "head)")
    shapes = parameter_shapes(model)
    asked = Candidate(given, given.trained_count(shapes), least(given))
    if progress:
        progress(asked)
    if asked.bytes is not None and asked.bytes <= budget:
        return SearchResult(budget, asked, asked, None, [asked])
    others = search(reduced_plans(given, shapes), model, cost, budget, progress, nested=True)
    if not others.best:
        others = search(candidate_plans(model), model, cost, budget, progress)
    if not others.best:
        others = _slower(others, least)
    return SearchResult(budget, None, others.smallest, asked, [asked, *others.tried], others.best)


def _slower(found: SearchResult, least: Cost) -> SearchResult:
    """A search in which nothing fits, with its smallest plan judged by what it needs however slow it is."""
    if found.smallest is None:
        return found
    smallest = replace(found.smallest, bytes=least(found.smallest.plan))
    tried = [smallest if c is found.smallest else c for c in found.tried]
    return replace(found, best=smallest if _bytes(smallest) <= found.budget else None, smallest=smallest, tried=tried)
