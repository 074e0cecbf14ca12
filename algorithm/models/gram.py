"""The Gram low-rank residual on an attention's output: Y = attn(X) + T. X (N, D) is its input, after the block's norm.

Token form:  T = G (A B),  G = X X^T / D  (N, N),  A (N, r),  B (r, D).
Head form:   T = concat_h G_h (A_h B_h),  G_h = X_h X_h^T / d  (N, N),  A_h (N, r),  B_h (r, d),  where d = D / H and
             X_h (N, d) is columns h d .. h d + d of X: a Gram matrix of its own for each head's slice of the features.
             The parameters hold the heads in front: A (H, N, r), B (H, r, d).

Computed as X((X^T A) B)/D, by head as X_h((X_h^T A_h) B_h)/d, so no N x N matrix is ever made. A ~ Normal(0, std) and
B = 0, so that the residual starts as a no-op.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from algorithm.errors import ModelError


def gram_residual(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """T of x (batch, N, D): token form with a (N, r), b (r, D); head form with a (H, N, r), b (H, r, D/H)."""
    if a.ndim == 3:
        return _by_head(x, a, b)
    inner = torch.matmul(x.transpose(-2, -1), a)      # (batch, D, r)
    mixed = torch.matmul(inner, b)                    # (batch, D, D)
    return torch.matmul(x, mixed) / x.shape[-1]


def _by_head(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    heads, (batch, tokens, features) = a.shape[0], x.shape
    split = x.reshape(batch, tokens, heads, features // heads).transpose(1, 2)      # (batch, H, N, d)
    inner = torch.matmul(split.transpose(-2, -1), a)                                # (batch, H, d, r)
    made = torch.matmul(split, torch.matmul(inner, b)) / split.shape[-1]            # (batch, H, N, d)
    return made.transpose(1, 2).reshape(batch, tokens, features)


class GramMixin:
    """Adds the residual to an attention's forward; parameters `gram_a` and `gram_b` of the token or the head form.

    `gram_idle` True skips it; only `additions.idle_additions` sets it, where the residual is known to be zeros.
    """

    gram_a: nn.Parameter
    gram_b: nn.Parameter
    gram_idle = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (batch, N, D) -> (batch, N, D)."""
        attended: Tensor = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return attended if self.gram_idle else attended + gram_residual(x, self.gram_a, self.gram_b)


def can_have_gram_rank(model: nn.Module, rank: int) -> bool:
    """Whether every Gram residual of a model has at least this rank, and does nothing beyond it: there B is all zeros."""
    return all(m.gram_b.shape[-2] >= rank and not bool(m.gram_b[..., rank:, :].any())
               for m in model.modules() if isinstance(m, GramMixin))


@torch.no_grad()
def at_gram_rank(model: nn.Module, rank: int | None) -> nn.Module:
    """The model with its Gram residuals at this rank, a copy: the first columns of A and rows of B. None, or the rank that
    it has: the model itself. Raises ModelError where what would go does something, or there is less.
    """
    grams = [m for m in model.modules() if isinstance(m, GramMixin)]
    if rank is None or all(m.gram_b.shape[-2] == rank for m in grams):
        return model
    if not can_have_gram_rank(model, rank):
        raise ModelError(f"gram_rank={rank}: the model's Gram residuals have a lower rank, or are trained at a higher one; "
                         "leave it out")
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, GramMixin):
            module.gram_a = nn.Parameter(module.gram_a[..., :rank].clone())
            module.gram_b = nn.Parameter(module.gram_b[..., :rank, :].clone())
    config: Any = model.vit_config
    model.vit_config = config.model_copy(update={"gram": config.gram.model_copy(update={"rank": rank})})
    return model


@cache
def _gram_class(attention: Any) -> Any:
    return type(f"Gram{attention.__name__}", (GramMixin, attention), {})


def add_gram(attention: nn.Module, tokens: int, dim: int, rank: int = 64, std: float = 0.01,
             generator: torch.Generator | None = None, heads: int | None = None) -> nn.Module:
    """Give an attention module the Gram residual, in place, keeping every parameter name it had.

    tokens: N, the number of tokens that it sees; dim: D, its feature width; heads: H of the head form, which divides D;
    None: the token form. Returns the same module.
    """
    reference = next(attention.parameters())
    front = () if heads is None else (heads,)
    a = torch.empty(*front, tokens, rank).normal_(0.0, std, generator=generator)
    attention.gram_a = nn.Parameter(a.to(reference))
    attention.gram_b = nn.Parameter(torch.zeros(*front, rank, dim // (heads or 1)).to(reference))
    kind: Any = type(attention)
    attention.__class__ = _gram_class(kind)
    return attention
