"""How alike the position embeddings of the patches are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithm.analysis.tokens import Tokens
from algorithm.errors import AnalysisError


def has_positions(model: nn.Module) -> bool:
    """Whether the model adds a learnt position embedding to its tokens."""
    return isinstance(getattr(model, "pos_embed", None), Tensor)


def position_similarity(model: nn.Module) -> Tensor:
    """Cosine of the position embedding of each patch with that of every other: (rows, columns, rows, columns).

    Embeddings of prefix tokens are left out. A zero embedding has the cosine 0 with all. Raises AnalysisError.
    """
    embedding = getattr(model, "pos_embed", None)
    if not isinstance(embedding, Tensor):
        raise AnalysisError(f"{type(model).__name__} has no learnt position embedding (pos_embed): nothing to "
                            "compare")
    tokens = Tokens.of(model)
    table = embedding.detach().reshape(-1, embedding.shape[-1]).double().cpu()
    patches = tokens.grid[0] * tokens.grid[1] if tokens.grid else len(table) - tokens.prefix
    unit = F.normalize(table[len(table) - patches:], dim=-1)  # timm's prefix comes first, or has none (no_embed_class)
    cosines = tokens.as_grid(unit @ unit.T)
    side = cosines.shape[-2:]
    return torch.clamp(cosines, -1, 1).reshape(*side, *side)
