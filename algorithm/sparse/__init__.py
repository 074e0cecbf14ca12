"""What is trained: the update plan, its rules, budgets, the search over plans, and the plan in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from algorithm.lazy import loader
from algorithm.sparse.budgets import NAMED as NAMED_BUDGETS
from algorithm.sparse.budgets import format_bytes, parse_budget
from algorithm.sparse.config import PlanChoice, PlanConfig
from algorithm.sparse.order import DEFAULT_MERIT
from algorithm.sparse.plan import Slice, UpdatePlan

if TYPE_CHECKING:
    from algorithm.sparse.apply import AppliedPlan
    from algorithm.sparse.merit import SearchResult, candidate_plans, choose_plan, search, weighted_plans
    from algorithm.sparse.resolve import parameter_shapes, plan_name, resolve_plan

# These need torch; loaded on first use so that reading a plan does not.
__getattr__ = loader(__name__, {
    "apply": ("AppliedPlan",), "resolve": ("parameter_shapes", "plan_name", "resolve_plan"),
    "merit": ("SearchResult", "candidate_plans", "choose_plan", "search", "weighted_plans")})
__all__ = ["DEFAULT_MERIT", "NAMED_BUDGETS", "AppliedPlan", "PlanChoice", "PlanConfig", "SearchResult", "Slice",
           "UpdatePlan", "candidate_plans", "choose_plan", "format_bytes", "parameter_shapes", "parse_budget",
           "plan_name", "resolve_plan", "search", "weighted_plans"]
