"""Columns and rows of a matrix by a criterion, and the last of so many things: what both ways of counting share."""

from __future__ import annotations

import torch
from torch import Tensor

from algorithm.errors import PlanError
from algorithm.sparse.config import Count, PlanConfig
from algorithm.sparse.plan import Choice, Slice

MATRICES = {"attention": ("attn.qkv.weight", "attn.proj.weight"), "mlp": ("mlp.fc1.weight", "mlp.fc2.weight")}


def select(weight: Tensor, k: int, config: PlanConfig, generator: torch.Generator) -> Choice | None:
    """Choose k columns (rows) of a matrix (O, C) by a rule's criteria; None where k is 0, "all" where it is all of them."""
    axis, criteria = config.weight_select_axis, config.weight_select_criteria
    n = extent(weight, config)
    if k == 0:
        return None
    if k == n:
        return "all"
    if criteria == "random":
        order = torch.randperm(n, generator=generator)
    else:
        norms = weight.detach().double().norm(dim=0 if axis == "cols" else 1)
        order = torch.argsort(norms, descending=criteria == "magnitude+", stable=True)
    return Slice(axis, tuple(sorted(order[:k].tolist())))


def extent(weight: Tensor, config: PlanConfig) -> int:
    """How many columns (rows) a rule chooses from."""
    return weight.shape[1] if config.weight_select_axis == "cols" else weight.shape[0]


def last(count: Count, of: int, what: str, things: str = "blocks") -> list[int]:
    """Indices of the last `count` of so many blocks (or other things). Raises PlanError where there are fewer."""
    n = of if count == "all" else count
    if n > of:
        raise PlanError(f"{what}={n}, but the model has {of} {things}; use 0 to {of}, or all")
    return list(range(of - n, of))
