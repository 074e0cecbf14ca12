"""The Gram low-rank residual on an attention's output: Y = attn(X) + G(AB), G = X X^T / D.

G(AB) = X((X^T A) B)/D, so no N x N matrix is ever made. A: (N, r) ~ Normal(0, std); B: (r, D) zeros, so the residual
starts as a no-op. X is the attention's input, after the block's norm.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


def gram_residual(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """T = X((X^T A) B)/D. x (batch, N, D), a (N, r), b (r, D) -> (batch, N, D)."""
    inner = torch.matmul(x.transpose(-2, -1), a)      # (batch, D, r)
    mixed = torch.matmul(inner, b)                    # (batch, D, D)
    return torch.matmul(x, mixed) / x.shape[-1]


class GramMixin:
    """Adds the residual to an attention's forward; parameters `gram_a` (N, r) and `gram_b` (r, D).

    `gram_idle` True skips it; only `additions.idle_additions` sets it, where the residual is known to be zeros.
    """

    gram_a: nn.Parameter
    gram_b: nn.Parameter
    gram_idle = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (batch, N, D) -> (batch, N, D)."""
        attended: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return attended if self.gram_idle else attended + gram_residual(x, self.gram_a, self.gram_b)


@cache
def _gram_class(attention: Any) -> Any:
    return type(f"Gram{attention.__name__}", (GramMixin, attention), {})


def add_gram(attention: nn.Module, tokens: int, dim: int, rank: int = 64, std: float = 0.01,
             generator: torch.Generator | None = None) -> nn.Module:
    """Give an attention module the Gram residual, in place, keeping every parameter name it had.

    tokens: N, the number of tokens that it sees; dim: D, its feature width. Returns the same module.
    """
    reference = next(attention.parameters())
    a = torch.empty(tokens, rank).normal_(0.0, std, generator=generator)
    attention.gram_a = nn.Parameter(a.to(reference))
    attention.gram_b = nn.Parameter(torch.zeros(rank, dim).to(reference))
    kind: Any = type(attention)
    attention.__class__ = _gram_class(kind)
    return attention
