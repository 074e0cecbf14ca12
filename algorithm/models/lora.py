"""LoRA (Hu et al. 2021) on a linear: y = x W^T + b + (x A^T) B^T * s, as plain module arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoraLinear(nn.Linear):
    """A linear with a low-rank addition. lora_a (r, C) ~ U(-1/sqrt(C), 1/sqrt(C)), lora_b (O, r) zeros, scale alpha/r.

    Made from an existing linear by `add_lora`; weight and bias keep their names. `lora_idle` True skips the addition;
    only `additions.idle_additions` sets it, where the addition is known to be zeros.
    """

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float
    lora_idle = False

    def forward(self, input: Tensor) -> Tensor:
        """input (..., C) -> (..., O)."""
        if self.lora_idle:
            return self.base(input)
        low = F.linear(F.linear(input, self.lora_a), self.lora_b)
        return self.base(input) + low * self.lora_scale

    def base(self, input: Tensor) -> Tensor:
        """The linear without its addition."""
        return F.linear(input, self.weight, self.bias)


def add_lora(linear: nn.Linear, rank: int, alpha: float | None = None,
             generator: torch.Generator | None = None) -> LoraLinear:
    """Turn a linear into a LoraLinear, in place. alpha None means alpha = rank (scale 1). Returns the same module."""
    bound = linear.in_features ** -0.5
    a = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
    linear.lora_a = nn.Parameter(a.to(linear.weight))
    linear.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank).to(linear.weight))
    linear.lora_scale = float(rank if alpha is None else alpha) / rank  # type: ignore[assignment]
    linear.__class__ = LoraLinear
    return linear  # type: ignore[return-value]
