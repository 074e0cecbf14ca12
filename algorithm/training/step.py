"""One training step, exactly the device's: forward, cross-entropy, gradients of the plan, SGD in place."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from algorithm.errors import NonFiniteLossError
from algorithm.sparse.apply import AppliedPlan


class Sgd:
    """SGD over an applied plan: v = momentum v + g; w -= lr v (w -= lr g without momentum). No weight decay."""

    def __init__(self, applied: AppliedPlan, momentum: float = 0.0) -> None:
        self.applied, self.momentum = applied, momentum
        self.names = list(applied.leaves)
        self.leaves = [applied.leaves[n] for n in self.names]
        self.velocity = [torch.zeros_like(p) for p in self.leaves] if momentum else []

    @torch.no_grad()
    def step(self, gradients: tuple[Tensor | None, ...], lr: float) -> None:
        """Update every leaf that has a gradient, then write the slices into their weights."""
        used = [(i, g) for i, g in enumerate(gradients) if g is not None]
        if not used:
            return
        grads = [g for _, g in used]
        if self.momentum:
            velocity = [self.velocity[i] for i, _ in used]
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, grads)
            grads = velocity
        torch._foreach_add_([self.leaves[i] for i, _ in used], grads, alpha=-lr)
        self.applied.sync()


def train_step(forward: Callable[[Tensor], Tensor], x: Tensor, label: int, sgd: Sgd, step: int, lr: float) -> float:
    """One image: x is what `forward` takes (batch 1), label a class. Returns the loss before the update.

    Raises NonFiniteLossError (nothing is updated then).
    """
    logits = forward(x)
    loss = F.cross_entropy(logits, torch.tensor([label], device=logits.device))
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NonFiniteLossError(f"the loss of step {step} is {value}: lower train.lr (it is {lr:g} here), "
                                 "or check the weights", step, value)
    if sgd.leaves:
        sgd.step(torch.autograd.grad(loss, sgd.leaves, allow_unused=True), lr)
    return value
