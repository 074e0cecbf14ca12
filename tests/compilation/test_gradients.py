"""Gradients add up: the first test of the project. The compiled Program, in float64, against PyTorch autograd."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compilation.capture import InputSpec
from compilation.errors import GradientError, PlanError
from compilation.passes.training import Selection
from compilation.pipeline import Compiler
from tests.compilation.models import IMAGE, FanOut, compile_planned, image_input, interpreted, torch_step

WIDTH, ROWS, CLASSES = 6, 3, 4
NODES = st.lists(st.tuples(st.sampled_from(["linear", "norm", "gelu", "add"]), st.integers(0, 8), st.integers(0, 8)),
                 min_size=2, max_size=8)


def check(model: torch.nn.Module, spec: InputSpec, plan: dict[str, Selection], image: np.ndarray, x: torch.Tensor,
          budget: int | None = None, steps: int = 1, momentum: float = 0.0, tolerance: float = 1e-9) -> None:
    compiled = compile_planned(model, spec, plan, budget, momentum)
    start = {n: p.detach().clone().double().numpy() for n, p in model.named_parameters() if n in plan}
    losses, final = interpreted(compiled, image, 1, 0.1, steps, momentum, start)
    want_losses, want = torch_step(model, x, 1, plan, 0.1, steps, momentum)
    np.testing.assert_allclose(losses, want_losses, rtol=tolerance)
    assert set(final) == set(want)
    for name in want:
        moved, expected = final[name].reshape(want[name].shape) - start[name], want[name] - start[name]
        np.testing.assert_allclose(moved, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()), err_msg=name)
        if np.linalg.norm(expected) > 1e-12:
            cosine = (moved * expected).sum() / np.linalg.norm(moved) / np.linalg.norm(expected)
            assert cosine > 1 - 1e-9, name


def test_a_value_used_twice_gets_the_sum_of_both_gradients() -> None:
    """y = f(x) + x and both ways again: the smallest graphs at which the ancestor's gradients are wrong."""
    for recipe in ([("linear", 0, 0), ("add", 0, 1), ("linear", 2, 0), ("add", 2, 3)],
                   [("linear", 0, 0), ("add", 1, 1)],
                   [("norm", 0, 0), ("gelu", 1, 0), ("add", 1, 2), ("add", 3, 1)]):
        torch.manual_seed(0)
        model = FanOut(recipe, WIDTH, CLASSES).eval()
        x = torch.randn(1, ROWS, WIDTH)
        used = dict.fromkeys((n for n, _ in model.named_parameters()), "all")
        check(model, InputSpec((ROWS, WIDTH)), used, x.numpy(), x.double())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(NODES, st.integers(0, 2 ** 16))
def test_random_graphs_with_fan_out(recipe: list[tuple[str, int, int]], seed: int) -> None:
    torch.manual_seed(seed)
    model = FanOut(recipe, WIDTH, CLASSES).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    x = torch.randn(1, ROWS, WIDTH)
    named = [n for n, _ in model.named_parameters()]
    chosen = [n for i, n in enumerate(named) if (seed >> (i % 16)) & 1] or named
    check(model, InputSpec((ROWS, WIDTH)), dict.fromkeys(chosen, "all"), x.numpy(), x.double())


def vit(depth: int = 2, **options: object) -> torch.nn.Module:
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=depth, num_heads=3,
                              num_classes=5, **options).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return model


BUDGETS = {"kept": None, "streamed": 60_000}


@pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS.keys())
@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"init_values": 0.3}, {"qkv_bias": False}],
                         ids=["class token", "average", "layer scale", "no qkv bias"])
def test_full_update_of_a_vit(options: dict[str, object], budget: int | None) -> None:
    model = vit(**options)
    image, x = image_input(IMAGE)
    plan: dict[str, Selection] = dict.fromkeys((n for n, _ in model.named_parameters()), "all")
    check(model, IMAGE, plan, image, x, None if budget is None else 160_000, steps=2, momentum=0.9)


@pytest.mark.parametrize("budget", [None, "smallest"])
def test_every_gradient_of_twelve_blocks(budget: str | None) -> None:
    """Cosine 1 with autograd for every trained tensor at the end of 24 residual additions, kept or recomputed."""
    model = vit(depth=12)
    image, x = image_input(IMAGE, 3)
    plan: dict[str, Selection] = {n: "all" for n, _ in model.named_parameters() if "bias" in n or "norm" in n or "head" in n}
    limit = None if budget is None else Compiler(model, IMAGE).smallest_ram(plan)
    check(model, IMAGE, plan, image, x, limit)


@pytest.mark.parametrize("axis", ["cols", "rows"])
@pytest.mark.parametrize("tight", [False, True], ids=["kept", "streamed"])
def test_partial_matrices_get_the_masked_gradient(axis: str, tight: bool) -> None:
    model = vit()
    image, x = image_input(IMAGE, 5)
    plan: dict[str, Selection] = {}
    for name, p in model.named_parameters():
        if name.startswith("blocks.1") and p.ndim == 2:
            size = p.shape[1 if axis == "cols" else 0]
            plan[name] = {axis: sorted(np.random.default_rng(7).choice(size, size // 4, replace=False).tolist())}
        elif name.endswith("bias") and "blocks.1" in name:
            plan[name] = "all"
    limit = Compiler(model, IMAGE).smallest_ram(plan, momentum=0.5) if tight else None
    check(model, IMAGE, plan, image, x, limit, steps=3, momentum=0.5)


def test_only_wanted_gradients_are_made() -> None:
    model = vit(depth=3)
    compiled = compile_planned(model, IMAGE, {"blocks.2.norm1.bias": "all"})
    first_gradient = next(i for i, c in enumerate(compiled.program.calls) if c.op.endswith("_grad"))
    trained = [c for c in compiled.program.calls[first_gradient:] if c.where.startswith(("blocks.0", "blocks.1", "patch"))]
    assert trained == []
    updates = [c.updates for c in compiled.program.calls if c.updates]
    assert updates in ([{"beta": "blocks.2.norm1.bias"}], [{"p": "blocks.2.norm1.bias"}])


def test_wrong_plans_are_refused_by_name() -> None:
    model = vit()
    for plan, error, text in [({"blocks.9.norm1.bias": "all"}, PlanError, "blocks.9.norm1.bias"),
                              ({"blocks.0.attn.qkv.weight": {"cols": [5, 3]}}, PlanError, "ascending"),
                              ({"blocks.0.attn.qkv.weight": {"cols": [99]}}, PlanError, "0..23"),
                              ({"blocks.0.norm1.bias": {"cols": [1]}}, PlanError, "only weight matrices")]:
        with pytest.raises((error, GradientError), match=text):
            compile_planned(model, IMAGE, plan)  # type: ignore[arg-type]
