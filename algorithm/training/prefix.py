"""The frozen prefix of a ViT: run without gradients, and once an image where its output can be kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from algorithm.sparse.apply import lowest_trained_block
from algorithm.sparse.plan import UpdatePlan

CACHE_BYTES = 1_000_000_000


class FrozenPrefix:
    """Splits a timm ViT below its lowest trained block. `below(x)` runs under no_grad, `above(tokens)` gives logits.

    `active` is False, and `below` passes its input through, where the embedding is trained or where the two halves
    do not reproduce the model's own forward bit by bit.
    """

    def __init__(self, model: nn.Module, plan: UpdatePlan, sample: Tensor) -> None:
        self.model: Any = model
        self.block = lowest_trained_block(model, plan)
        self.active = self.block >= 0
        if self.active:
            with torch.no_grad():
                try:
                    self.active = torch.equal(self.above(self.below(sample)), model(sample))
                except (AttributeError, TypeError, RuntimeError):
                    self.active = False

    @torch.no_grad()
    def below(self, x: Tensor) -> Tensor:
        """Image (B, C, H, W) -> tokens (B, N, D) at the input of the lowest trained block."""
        if not self.active:
            return x
        m = self.model
        x = m.norm_pre(m.patch_drop(m._pos_embed(m.patch_embed(x))))
        for block in m.blocks[:self.block]:
            x = block(x)
        return x

    def above(self, x: Tensor) -> Tensor:
        """What `below` gave -> logits (B, K)."""
        if not self.active:
            return self.model(x)
        m = self.model
        for block in m.blocks[self.block:]:
            x = block(x)
        return m.forward_head(m.norm(x))
