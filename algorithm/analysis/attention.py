"""What attention looks at, from recorded maps: one block and head, all blocks, and rolled out over the depth.

maps: a list of (B, H, N, N), one a block, rows sum to 1 (`algorithm.models.features.get_attention_maps`). B images, H heads,
N tokens, P = N - prefix patches. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from algorithm.analysis.tokens import Tokens, check_maps, index_of

VIT = Tokens()  # a class token, then the patches


def cls_to_patch(maps: Sequence[Tensor], layer: int = -1, head: int | None = None, tokens: Tokens = VIT) -> Tensor:
    """How much the class token of each image attends to each patch: (B, P). head None: the mean over heads.

    Without a class token: the mean over all queries (Tokens.from_class). Raises AnalysisError.
    """
    check_maps(maps)
    block = maps[index_of("layer", layer, len(maps))]
    rows = block.mean(dim=1) if head is None else block[:, index_of("head", head, block.shape[1])]
    return tokens.from_class(rows)


def cls_to_patch_layers(maps: Sequence[Tensor], tokens: Tokens = VIT) -> Tensor:
    """`cls_to_patch` of every layer, mean over heads: (B, L, P), for pictures of images x layers."""
    return torch.stack([cls_to_patch(maps, i, None, tokens) for i in range(len(maps))], dim=1)


def rollout(maps: Sequence[Tensor], tokens: Tokens = VIT) -> Tensor:
    """Attention rollout from the class token to the patches: (B, P).

    Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3: A_l = (W_l + I)/2, W_l the mean over
    heads, and the rollout is A_L ... A_2 A_1. Each of its rows sums to 1; what flows from prefix tokens (the class token
    itself, registers) is in the row but not in the result. Without a class token: the mean over all queries.
    """
    check_maps(maps)
    n = maps[0].shape[-1]
    identity = torch.eye(n, dtype=maps[0].dtype, device=maps[0].device)
    flow = identity.expand(maps[0].shape[0], n, n)
    for block in maps:
        flow = (block.mean(dim=1) + identity) / 2 @ flow
    return tokens.from_class(flow)
