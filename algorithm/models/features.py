"""What a vision transformer of timm computes inside, for monitoring and analysis: patch tokens and attention maps.

Through hooks, on any ViT of timm with softmax attention: class, distillation and register tokens or none, q/k-norm,
rotary and relative positions, separate q, k, v, parallel blocks, gates, the Gram residual and LoRA. timm's attentions
hand their softmaxed map to `attn_drop` where `fused_attn` is False, so the map that is read is the one that the model
computes with, whatever made it. The model is left as it was: no hook, no flag, no mode stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from algorithm.errors import ModelError

ROW_SUM_TOLERANCE = 1e-2    # of a softmaxed row, also in half precision


def get_patch_tokens(model: nn.Module, images: Tensor) -> Tensor:
    """images (B, 3, h, w) -> (B, N, D): the patch tokens of the last block after the final norm, without prefix tokens.

    Where the model norms after its pooling (`fc_norm`), the tokens are as they enter the pooling. No gradient; computed
    as in evaluation. Raises ModelError for a model without a row of patch tokens.
    """
    if not hasattr(model, "forward_features") or not hasattr(model, "num_prefix_tokens"):
        raise ModelError(f"{_name(model)} has no patch tokens: expected a vision transformer of timm (forward_features, "
                         "num_prefix_tokens); take another model")
    with _evaluating(model):
        tokens: Any = model.forward_features(images)  # type: ignore[operator]
    if not isinstance(tokens, Tensor) or tokens.ndim != 3:
        found = f"shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ModelError(f"{_name(model)} has no patch tokens: its features are {found}, expected (batch, tokens, "
                         "width); take a plain vision transformer")
    return tokens[:, int(model.num_prefix_tokens):]  # type: ignore[arg-type]


def get_attention_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """images (B, 3, h, w) -> one (B, H, N, N) a block, rows softmaxed (they sum to 1); N with the prefix tokens.

    No gradient; computed as in evaluation, with the attentions' fused path off meanwhile. Raises ModelError, naming the
    block, for attention that has no such map: windows, channels, pooled keys, talking heads, differential attention.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.Module):
        raise ModelError(f"{_name(model)} has no attention maps: expected a vision transformer of timm with blocks; take "
                         "another model")
    maps: list[list[Tensor]] = []
    tokens: list[int] = []
    attentions = [_attention_of(model, i, block) for i, block in enumerate(blocks.children())]
    with ExitStack() as stack:
        for (_, attention), block in zip(attentions, blocks.children(), strict=True):
            seen: list[Tensor] = []
            maps.append(seen)
            if hasattr(attention, "fused_attn"):
                stack.callback(setattr, attention, "fused_attn", attention.fused_attn)
                attention.fused_attn = False  # type: ignore[assignment]
            handles = (attention.attn_drop.register_forward_pre_hook(  # type: ignore[union-attr]
                           lambda _, args, seen=seen: seen.append(args[0].detach())),
                       block.register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[-2])))
            for handle in handles:
                stack.callback(handle.remove)
        with _evaluating(model):
            model(images)
    return [_checked(model, name, attention, seen, (len(images), n))
            for (name, attention), seen, n in zip(attentions, maps, tokens, strict=True)]


def _attention_of(model: nn.Module, index: int, block: nn.Module) -> tuple[str, nn.Module]:
    """The one attention of a block, by the dropout that timm puts behind its softmax. The block itself may be it."""
    found = [(f"blocks.{index}{'.' if n else ''}{n}", m) for n, m in block.named_modules()
             if isinstance(getattr(m, "attn_drop", None), nn.Module)]
    if len(found) != 1:
        raise ModelError(f"{_name(model)} has no attention map a block: blocks.{index} has {len(found) or 'no'} attentions "
                         "with a softmaxed map (attn_drop), expected one; take another model")
    return found[0]


def _checked(model: nn.Module, name: str, attention: nn.Module, seen: list[Tensor], size: tuple[int, int]) -> Tensor:
    wanted = (size[0], int(getattr(attention, "num_heads", 0)), size[1], size[1])
    found = [tuple(m.shape) for m in seen]
    if found != [wanted]:
        raise ModelError(f"{_name(model)} has no attention map at {name} ({type(attention).__name__}): expected one of "
                         f"(batch, heads, tokens, tokens) = {wanted}, found {found or 'none'}; take another model")
    off = float((seen[0].float().sum(-1) - 1).abs().max())
    if not off <= ROW_SUM_TOLERANCE:
        raise ModelError(f"{_name(model)} has no softmaxed attention map at {name} ({type(attention).__name__}): its rows "
                         f"sum to 1 within {off:.2g} only; take another model")
    return seen[0]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """No gradient and evaluation mode within it; every module's own mode again after it."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _name(model: nn.Module) -> str:
    config = getattr(model, "pretrained_cfg", None)
    architecture = config.get("architecture") if isinstance(config, dict) else None
    return f"{type(model).__name__} {architecture!r}" if architecture else type(model).__name__
