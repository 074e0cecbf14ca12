"""Vision transformers through timm, with the Gram residual and LoRA as additions. Names are timm's throughout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from algorithm.errors import ModelError
from algorithm.models.config import ModelConfig
from algorithm.models.gram import add_gram
from algorithm.models.lora import add_lora
from algorithm.models.torchvision_shim import timm
from algorithm.models.weights import load_weights
from algorithm.schema import nearest


def build_model(config: ModelConfig) -> nn.Module:
    """Build a timm ViT in eval mode, float32, with its weights loaded.

    The result has timm's `pretrained_cfg` (normalisation) and a `vit_config` attribute, the config it was made from.
    Raises ModelError (unknown name, impossible size) and WeightsError (bad or missing weights).
    """
    name = config.name.split("/")[-1]
    if not timm.is_model(name):
        raise ModelError(f"unknown timm model {config.name!r}{nearest(name, timm.list_models('*vit*'))}")
    wanted: dict[str, Any] = {
        "img_size": config.img_size, "num_classes": config.num_classes, "patch_size": config.patch_size,
        "global_pool": config.pool, **config.extra,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        try:
            model = timm.create_model(name, pretrained=False, **wanted)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            raise ModelError(f"timm cannot build {config.name!r} with {_short(wanted)}: {error}") from None
    if not hasattr(model, "blocks") or not hasattr(model, "patch_embed"):
        raise ModelError(f"{config.name!r} is not a vision transformer (it has no patch_embed and blocks)")
    load_weights(model, config.weights, name)
    if config.head_init == "zeros" and isinstance(model.head, nn.Linear) and not getattr(model, "head_loaded", False):
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    _add_residuals(model, config)
    model.vit_config = config
    return model.eval()


def _short(wanted: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in wanted.items() if v is not None)


def token_count(model: nn.Module) -> int:
    """N: patches plus prefix tokens (class token, registers)."""
    return int(model.patch_embed.num_patches) + int(getattr(model, "num_prefix_tokens", 0))  # type: ignore[union-attr,arg-type]


def _add_residuals(model: nn.Module, config: ModelConfig) -> None:
    blocks: nn.Sequential = model.blocks  # type: ignore[assignment]
    for option in (config.gram, config.lora):
        bad = [i for i in option.blocks or [] if not 0 <= i < len(blocks)]
        if bad:
            raise ModelError(f"block {bad[0]} does not exist: the model has blocks 0 to {len(blocks) - 1}")
    if config.gram.enabled:
        generator = torch.Generator().manual_seed(config.seed + 1)
        for i, block in enumerate(blocks):
            if config.gram.blocks is None or i in config.gram.blocks:
                add_gram(block.attn, token_count(model), int(model.embed_dim),  # type: ignore[arg-type]
                         config.gram.rank, config.gram.std, generator)
    if config.lora.enabled:
        generator = torch.Generator().manual_seed(config.seed + 2)
        for target in config.lora.targets:
            found = [(n, m) for n, m in model.named_modules() if _is_target(n, target, config.lora.blocks)]
            linears = [m for _, m in found if isinstance(m, nn.Linear)]
            if not linears:
                names = sorted({n.split(".", 2)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
                raise ModelError(f"LoRA target {target!r} names no linear of the model{nearest(target, names)}")
            for linear in linears:
                add_lora(linear, config.lora.rank, config.lora.alpha, generator)


def _is_target(name: str, target: str, blocks: list[int] | None) -> bool:
    if name != target and not name.endswith("." + target):
        return False
    parts = name.split(".")
    return blocks is None or parts[0] != "blocks" or int(parts[1]) in blocks


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel that the model's weights expect, from timm's pretrained configuration."""
    cfg: Any = model.pretrained_cfg
    return tuple(cfg["mean"]), tuple(cfg["std"])


def input_scale_shift(model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """float32 (C,), (C,): the model's input is uint8 * scale + shift, scale = 1/(255 std), shift = -mean/std."""
    mean, std = (np.asarray(v, np.float64) for v in normalisation(model))
    return (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32)


def images_to_input(images: np.ndarray | torch.Tensor, scale: np.ndarray, shift: np.ndarray,
                    dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 (B, H, W, C) -> (B, C, H, W) of `dtype`, u8 * scale + shift."""
    x = torch.as_tensor(images).permute(0, 3, 1, 2).to(dtype)
    s, t = (torch.from_numpy(v).to(device=x.device, dtype=dtype).view(1, -1, 1, 1) for v in (scale, shift))
    return (x * s + t).contiguous()
