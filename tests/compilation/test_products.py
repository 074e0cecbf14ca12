"""Products of several matrices: the cheapest order, whatever way round they stand, and what the regions make of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compilation.capture import InputSpec
from compilation.cost import total_macs
from compilation.passes.narrow import narrow_rows
from compilation.passes.products import order_products
from compilation.pipeline import Compiler
from compilation.program import Program
from tests.compilation.in_c import trains_like_torch

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


class Products(nn.Module):
    """x (1, N, D) + formula(x, a (N, r), b (r, D)), a row of it or the mean of them to a head."""

    def __init__(self, formula: Formula, n: int, d: int, r: int, one: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.formula, self.one, self.shape = formula, one, (n, d)
        self.a, self.b, self.head = nn.Parameter(torch.randn(n, r)), nn.Parameter(torch.randn(r, d)), nn.Linear(d, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.formula(x, self.a, self.b)
        return self.head(y[:, 0] if self.one else y.mean(1))


def gram(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return x @ ((x.transpose(1, 2) @ a) @ b) / x.shape[-1]


def late(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Numbers in several places."""
    return 3.0 * (((0.5 * x) @ x.transpose(1, 2)) @ a) @ b


def turned(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The same, as the transpose of a product."""
    return (b.T @ (a.T @ (x @ x.transpose(1, 2)))).transpose(1, 2)


def ordered(model: Products, order: bool = True) -> Program:
    program = Compiler(model, InputSpec(model.shape)).forward.copy()
    narrow_rows(program)
    if order:
        order_products(program)
    return program


def calls(program: Program) -> list[str]:
    return [c.op for c in program.calls if c.op.startswith(("matmul", "mul_const"))]


def cheapest(sizes: tuple[int, ...]) -> int:
    """The multiply-accumulates of the best of all orders."""
    if len(sizes) == 2:
        return 0
    return min(cheapest(sizes[:k + 1]) + cheapest(sizes[k:]) + sizes[0] * sizes[k] * sizes[-1]
               for k in range(1, len(sizes) - 1))


@pytest.mark.parametrize("one", [False, True], ids=["all rows", "one row"])
@pytest.mark.parametrize("sizes", [(17, 12, 4), (5, 12, 4), (5, 3, 40)], ids=str)
@pytest.mark.parametrize("formula", [gram, late, turned])
def test_the_order_is_the_cheapest(formula: Formula, sizes: tuple[int, int, int], one: bool) -> None:
    n, d, r = sizes
    model = Products(formula, n, d, r, one and formula is not turned)
    before, after = ordered(model, False), ordered(model)
    rows = 1 if model.one else n
    assert total_macs(after) - 3 * d == cheapest((rows, d, n, r, d)) <= total_macs(before) - 3 * d
    assert len(calls(after)) == 3 + (formula is not turned)         # one number, at the smallest result
    if formula is not turned:
        at = next(c for c in after.calls if c.op == "mul_const")
        made = [after.tensors[c.outputs["y"]].type.count for c in after.calls if c.op.startswith("matmul")]
        assert after.tensors[at.outputs["y"]].type.count == min(made)
        assert at.attrs["value"] == pytest.approx(1 / d if formula is gram else 1.5)


def test_a_product_that_others_read_stays() -> None:
    def twice(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        inner = x.transpose(1, 2) @ a
        return x @ (inner @ b) + x @ (inner @ b.relu())
    program = ordered(Products(twice, 7, 6, 2))
    inner = [c for c in program.calls if c.op.startswith("matmul") and sum(c.outputs["y"] in o.inputs.values()
                                                                         for o in program.calls) == 2]
    assert len(inner) == 1 and len(calls(program)) == 5


@pytest.mark.parametrize("one", [False, True], ids=["all rows", "one row"])
@pytest.mark.parametrize("formula", [gram, late, turned])
def test_it_trains_in_the_least_memory(formula: Formula, one: bool) -> None:
    """Parameters that are read as matrices of tokens are updated in their region, a tile at a time."""
    model = Products(formula, 19, 12, 6, one)
    plan, spec = dict.fromkeys(("a", "b", "head.bias"), "all"), InputSpec(model.shape)
    smallest = Compiler(model, spec).smallest_ram(dict(plan))
    program = trains_like_torch(model, spec, dict(plan), smallest).program
    updates = {p for c in program.calls if c.op in program.regions for p in c.updates.values()}
    assert formula is turned or one or updates == {"a", "b"}
