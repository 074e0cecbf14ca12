"""Gradients stop where PyTorch stops them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compilation.capture import InputSpec
from compilation.errors import CaptureError, GradientError
from compilation.pipeline import Compiler
from tests.compilation.in_c import trains_like_torch
from tests.compilation.models import compile_planned, interpreted, torch_step

SPEC = InputSpec((6,))
Body = Callable[[Any, torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """x -> a -> body -> b. `p` is a vector that the body may use."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4)
        self.p = nn.Parameter(torch.randn(6))
        self.body = body
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.body(self, self.a(x)))


def no_grad(net: Net, h: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        g = F.relu(h)
        both = g + h
    return h + g + both


def nested(net: Net, h: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        g = F.relu(h)
        with torch.enable_grad():
            g = F.gelu(net.a(g))        # trains a, not what lies below g
        g = g + h
        with torch.enable_grad():
            g = g + net.a(h)
    return h + g


def in_place(net: Net, h: torch.Tensor) -> torch.Tensor:
    g = h + h
    g.detach_()
    return h + g


@torch.no_grad()
def frozen_branch(h: torch.Tensor) -> torch.Tensor:
    return F.gelu(h)


def several(net: Net, h: torch.Tensor) -> torch.Tensor:
    g = F.relu(net.a(h.detach()) + h.detach())
    return g + (g + h).detach() + F.gelu(h)


BODIES: dict[str, Body] = {
    "detach": lambda net, h: h + F.relu(h).detach(),
    "detach before": lambda net, h: h + F.relu(h.detach()),
    "twice": lambda net, h: h.detach() + h.detach() + h,
    "no_grad": no_grad, "nested": nested, "detach_": in_place, "several": several,
    "decorated": lambda net, h: h + frozen_branch(h),
    "through a layer": lambda net, h: h + net.a(h).detach(),
    "a weight": lambda net, h: h * net.p.detach() + h,
}


def used(model: Net, x: torch.Tensor) -> tuple[list[str], list[str]]:
    """Parameters that PyTorch's gradient reaches, and that it does not."""
    loss = F.cross_entropy(model(x), torch.tensor([1]))
    names = [n for n, _ in model.named_parameters()]
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [n for n, g in zip(names, found, strict=True) if g is not None], \
        [n for n, g in zip(names, found, strict=True) if g is None]


@pytest.mark.parametrize("name", BODIES)
def test_the_gradient_is_pytorchs_own(name: str) -> None:
    model, x = Net(BODIES[name]), torch.randn(1, 6)
    reached, _ = used(model, x)
    plan = dict.fromkeys(reached, "all")
    losses, final = interpreted(compile_planned(model, SPEC, dict(plan)), x.numpy(), 1, 0.1, 2)
    want_losses, want = torch_step(model, x.double(), 1, dict(plan), 0.1, 2)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-9)
    for n in want:
        np.testing.assert_allclose(final[n].reshape(want[n].shape), want[n], rtol=0, atol=1e-9, err_msg=n)


def test_the_frozen_branch_is_no_part_of_the_backward_pass() -> None:
    compiled = compile_planned(Net(BODIES["detach"]), SPEC, {"a.bias": "all"})
    assert not [c for c in compiled.program.calls if c.op == "relu_grad"]


@pytest.mark.parametrize("body", [BODIES["several"], lambda net, h: h * net.p + h * net.p.detach(),
                                  lambda net, h: h + F.linear(h, net.a.weight.detach()),
                                  lambda net, h: h * F.softmax(net.a(h), -1).detach()],
                         ids=["several", "a vector both ways", "a matrix both ways", "long tail"])
def test_the_c_step_stops_there_too(body: Body) -> None:
    model = Net(body)
    reached, _ = used(model, torch.randn(1, 6))
    trains_like_torch(model, SPEC, dict.fromkeys(reached, "all"))


def test_a_parameter_that_is_only_detached_is_not_trained() -> None:
    """PyTorch leaves it as it is, so training it is a mistake in the plan."""
    model = Net(BODIES["a weight"])
    assert used(model, torch.randn(1, 6))[1] == ["p"]
    with pytest.raises(GradientError, match="no gradient reaches p, which the model uses only detached"):
        compile_planned(model, SPEC, {"p": "all", "a.bias": "all"})


def test_a_layer_below_a_detach_is_not_trained() -> None:
    with pytest.raises(GradientError, match=r"no gradient reaches a.*take it out of the plan"):
        compile_planned(Net(lambda net, h: h.detach()), SPEC, {"a.weight": "all", "b.bias": "all"})


class Straight(torch.autograd.Function):
    """Rounds, with the gradient of doing nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return x.round()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return g


def hooked(net: Net, h: torch.Tensor) -> torch.Tensor:
    h = h + h
    if h.requires_grad:
        h.register_hook(lambda g: 0.1 * g)
    return h


def inferred(net: Net, h: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        g = F.relu(h)
    return h + g


def written(net: Net, h: torch.Tensor) -> torch.Tensor:
    g = h + h
    with torch.no_grad():
        g.mul_(3.0)
    return h + g


@pytest.mark.parametrize("body", [lambda net, h: Straight.apply(h), hooked, inferred, written],
                         ids=["autograd.Function", "hook", "inference_mode", "write under no_grad"])
def test_a_gradient_that_the_graph_does_not_hold_is_refused(body: Body) -> None:
    with pytest.raises(CaptureError, match=r"the gradient of a\.weight that the captured graph has is not the model's own"):
        Compiler(Net(body), SPEC)


def test_data_is_refused_with_the_way_to_write_it() -> None:
    with pytest.raises(CaptureError, match=r"write x\.detach\(\) for x\.data"):
        Compiler(Net(lambda net, h: h + h.data), SPEC)


def test_the_model_itself_stays_as_it_was() -> None:
    model = Net(BODIES["no_grad"])
    model.p.requires_grad_(False)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    Compiler(model, SPEC)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["p"]
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
