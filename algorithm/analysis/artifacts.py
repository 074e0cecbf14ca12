"""High-norm tokens: patches that a vision transformer uses as scratch space (Darcet et al. 2024, "Vision Transformers Need
Registers", section 2.1: outliers in the norms of the last layer's patch tokens)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algorithm.analysis.observing import observed
from algorithm.analysis.tokens import Tokens
from algorithm.errors import AnalysisError

SIGMAS = 3.0


@dataclass(frozen=True)
class NormStatistics:
    """Of the L2 norms of all patch tokens of some images: norms (B, P) float64; limit = mean + sigmas * std.

    std is the population's. Of n values none lies beyond mean + sqrt(n - 1) std, so up to 10 tokens have no outlier.
    """

    norms: np.ndarray
    mean: float
    std: float
    limit: float

    @property
    def outlier_ratio(self) -> float:
        """Share of the tokens whose norm is above the limit."""
        return float((self.norms > self.limit).mean())

    def metrics(self) -> dict[str, float]:
        return {"l2_norm_mean": self.mean, "l2_norm_std": self.std, "l2_outlier_ratio": self.outlier_ratio}


def token_norms(tokens: Tensor) -> Tensor:
    """(B, P, D) -> (B, P) float64: the L2 norm of each token."""
    return torch.linalg.vector_norm(tokens.detach().double(), dim=-1)


def norm_statistics(norms: Tensor | np.ndarray, sigmas: float = SIGMAS) -> NormStatistics:
    """norms (B, P). Raises AnalysisError where one is not finite."""
    values = np.asarray(norms.cpu() if isinstance(norms, Tensor) else norms, np.float64)
    if not values.size or not np.isfinite(values).all():
        raise AnalysisError(f"{int((~np.isfinite(values)).sum())} of {values.size} token norms are not finite: the weights "
                            "or the images are not")
    mean, std = float(values.mean()), float(values.std())
    return NormStatistics(values, mean, std, mean + sigmas * std)


def last_layer_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """The patch tokens that leave the last block: (B, P, D), before the final norm.

    Before, since a LayerNorm gives every token about the same norm and would hide what is looked for. images (B, C, H, W),
    normalised. Raises AnalysisError.
    """
    blocks: Any = getattr(model, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not len(blocks):
        raise AnalysisError(f"{type(model).__name__} has no blocks: take a vision transformer of timm")
    seen: list[Tensor] = []
    handle = blocks[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    try:
        with observed(model), torch.no_grad():
            model(images)
    finally:
        handle.remove()
    return Tokens.of(model, images).patches_of(seen[0].detach())
