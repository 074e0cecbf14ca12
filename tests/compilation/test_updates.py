"""No parameter is read after its update, whatever is computed again: random small networks at every budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from compilation.capture import InputSpec
from compilation.errors import PlanError
from compilation.passes.training import Selection
from compilation.pipeline import Compiled, Compiler
from tests.compilation.models import interpreted, torch_step

ROWS, WIDTH, CLASSES = 3, 6, 4
KINDS = st.lists(st.sampled_from(["linear", "linear", "relu", "gelu", "norm", "tied", "skip"]), min_size=1, max_size=9)
TRAINED = {"everything": lambda n: True, "biases": lambda n: n.endswith("bias"), "weights": lambda n: n.endswith("weight"),
           "first": lambda n: n.startswith("layers.0.") or n == "head.bias", "tied": lambda n: "shared" in n or "head" in n}


class Rows(nn.Module):
    """Row-wise layers one after the other; "tied" layers share one matrix and bias, "skip" adds the input of the last."""

    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.kinds = kinds
        made = {"linear": lambda: nn.Linear(WIDTH, WIDTH), "norm": lambda: nn.LayerNorm(WIDTH), "relu": nn.ReLU,
                "gelu": nn.GELU}
        self.layers = nn.ModuleList(made.get(k, nn.Identity)() for k in kinds)
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before = x
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            before, x = x, self.shared(x) if kind == "tied" else x + before if kind == "skip" else layer(x)
        return self.head(self.shared(x).mean(1))


def budgets(compiler: Compiler, plan: dict[str, Selection]) -> list[int | None]:
    """The smallest, the largest, and some between."""
    planner = compiler.planner(plan)
    least, most = planner.smallest().ram, planner.unconstrained().ram
    return [least, *range(least + 1, most, max(1, (most - least) // 3)), None]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(KINDS, st.sampled_from(list(TRAINED)), st.integers(0, 2 ** 16))
@example(["linear", "relu", "linear", "relu", "linear"], "everything", 0)       # two streams that could share a linear
@example(["norm", "linear", "gelu", "linear", "gelu", "linear", "skip"], "biases", 1)
def test_random_chains_train_like_pytorch(kinds: list[str], trained: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = Rows(kinds).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.5)
    x = torch.randn(1, ROWS, WIDTH)
    compiler = Compiler(model, InputSpec((ROWS, WIDTH)))
    plan: dict[str, Selection] = {n: "all" for n in compiler.shapes if TRAINED[trained](n)}
    plan = {n: s for n, s in plan.items() if n in compiler.forward.tensors} or {"head.bias": "all"}
    start = {n: v.astype(np.float64) for n, v in compiler.exported.parameters.items()}
    steps = [(budget, interpreted(compiler.compile(plan, budget), x.numpy(), 1, 0.1, steps=2))
             for budget in budgets(compiler, plan)]
    want_losses, want = torch_step(model, x, 1, plan, 0.1, 2)
    for budget, (losses, final) in steps:
        np.testing.assert_allclose(losses, want_losses, rtol=1e-9, err_msg=str(budget))
        for name in want:
            np.testing.assert_allclose(final[name].reshape(want[name].shape) - start[name], want[name] - start[name],
                                       rtol=0, atol=1e-9 * max(1.0, np.abs(want[name]).max()), err_msg=f"{name} {budget}")


def convolutions(*layers: nn.Module, classes: int = 3) -> nn.Module:
    body = nn.Sequential(*layers, nn.Flatten())
    features = body(torch.zeros(1, 3, 8, 8)).shape[1]
    return nn.Sequential(body, nn.Linear(features, classes)).eval()


NETWORKS: dict[str, Any] = {
    "one": lambda: convolutions(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()),
    "two": lambda: convolutions(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 1, 1), nn.ReLU()),
    "bare": lambda: convolutions(nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 1), nn.Sigmoid(), nn.Conv2d(4, 2, 2, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_convolutions_are_ordered_at_every_budget(name: str) -> None:
    """The verifier judges each order; `tests/runtime/test_long_tail.py` compares their numbers."""
    compiler = Compiler(NETWORKS[name](), InputSpec((3, 8, 8)))
    for trained in TRAINED.values():
        plan: dict[str, Selection] = {n: "all" for n in compiler.shapes if trained(n)}
        if plan:
            compiled: list[Compiled] = [compiler.compile(plan, b) for b in budgets(compiler, plan)]
            assert compiled[0].memory.total <= compiled[-1].memory.total


def test_one_class_is_no_classifier() -> None:
    """Its loss is 0 whatever the weights are."""
    compiler = Compiler(nn.Sequential(nn.Linear(6, 1)).eval(), InputSpec((6,)))
    with pytest.raises(PlanError, match=r"\(1, 1\).*at least 2 classes"):
        compiler.compile({"0.weight": "all"})
