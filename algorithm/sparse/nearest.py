"""What is near a plan that does not fit: the same plan with parts left out. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping

from algorithm.sparse.plan import Shape, UpdatePlan


def reduced_plans(plan: UpdatePlan, shapes: Mapping[str, Shape]) -> list[UpdatePlan]:
    """A plan with more and more of it, the least first: every plan contains the one before it, the last is the whole.

    What is left out first is what costs most and matters least: the matrices, from the lowest layer up, then the vectors
    (biases, norms) likewise, at last the head. shapes: of the model's parameters, in the model's order.
    """
    order = [n for n in reversed(list(shapes)) if n in plan.parameters]
    order.sort(key=lambda n: 0 if n.startswith("head.") else 1 if len(shapes[n]) == 1 else 2)  # stable: last layers first
    return [_part(plan, set(order[:k]), shapes) for k in range(1, len(order) + 1)]


def _part(plan: UpdatePlan, kept: set[str], shapes: Mapping[str, Shape]) -> UpdatePlan:
    """The plan of these parameters alone, named by what it leaves out."""
    parameters = {n: c for n, c in plan.parameters.items() if n in kept}
    missing = []
    for what, vector in (("matrices", False), ("biases and norms", True)):
        kind = [n for n in plan.parameters if (len(shapes[n]) == 1) is vector]
        if out := sum(n not in kept for n in kind):
            missing.append(f"{out} of its {len(kind)} {what}")
    return UpdatePlan(parameters, f"{plan.name or 'the plan'}, without {' and '.join(missing)}" if missing else plan.name,
                      plan.gram_rank)
