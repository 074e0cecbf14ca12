"""Vision transformers through timm: variants, and the Gram residual and LoRA as additions. Names are timm's throughout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from algorithm.errors import ModelError
from algorithm.models.additions import add_additions
from algorithm.models.config import ModelConfig
from algorithm.models.registers import create_with_registers
from algorithm.models.sources import SHORT_NAMES, timm_name
from algorithm.models.torchvision_shim import timm
from algorithm.models.weights import load_weights
from algorithm.schema import nearest, one_line

NO_VIT = ("is not a vision transformer of timm's usual kind ({}): take another, or compile it through a factory of your "
          "own (python -m compilation module:function)")


def build_model(config: ModelConfig, drop_path: float = 0.0) -> nn.Module:
    """Build a timm ViT in eval mode, float32, with its weights loaded.

    drop_path: of a recipe; the share of images whose block is skipped in training mode, 0 to below 1, growing from 0 at
    the first block to this at the last (timm's). In eval mode, and so on the device, it does nothing.
    The result has timm's `pretrained_cfg` (normalisation) and two attributes of its own: `vit_config`, the
    config it was made from, and `timm_arguments`, with which timm.create_model makes the same without additions.
    Raises ModelError (unknown name, impossible size) and WeightsError (bad or missing weights).
    """
    name = timm_name(config.name)
    if not timm.is_model(name):
        raise ModelError(f"unknown timm model {config.name!r}{nearest(name, [*SHORT_NAMES, *timm.list_models('*vit*')])}")
    if not 0.0 <= drop_path < 1.0:
        raise ModelError(f"drop_path={drop_path} is not a share of images: give 0 to below 1")
    wanted: dict[str, Any] = {
        "img_size": config.img_size, "num_classes": config.num_classes, "patch_size": config.patch_size,
        "global_pool": config.pool, **config.extra,
        **({"drop_path_rate": drop_path} if drop_path else {}),
    }
    with torch.random.fork_rng(devices=[]):
        try:
            model: Any
            model, wanted = _create(name, config, wanted)
            # made for any size, it would resample its positions in every step: here the size is known
            if getattr(model, "dynamic_img_size", False) and "dynamic_img_size" not in wanted:
                model, wanted = _create(name, config, {**wanted, "dynamic_img_size": False})
        except ModelError:
            raise
        except Exception as error:  # timm and torch raise many classes for arguments that do not go together
            other = "unexpected keyword argument" in str(error) and "'img_size'" in str(error)
            raise ModelError(f"{config.name!r} {NO_VIT.format('it takes no img_size')}" if other else
                             f"timm cannot build {config.name!r} with {_short(wanted)}: {one_line(error)}") from None
    if not hasattr(model, "blocks") or not hasattr(getattr(model, "patch_embed", None), "num_patches"):
        raise ModelError(f"{config.name!r} {NO_VIT.format('it has no patch_embed and blocks')}")
    if model.patch_embed.num_patches < 1:
        raise ModelError(f"model.img_size={config.img_size} is smaller than one patch of {config.name!r}: "
                         "give a larger size, or model.patch_size")
    model.vit_config = config
    model.timm_arguments = {"model_name": name, **{k: v for k, v in wanted.items() if v is not None}}
    add_additions(model, config, token_count(model))
    if config.gram.enabled and not isinstance(model, timm.models.VisionTransformer):
        _check_gram(model, config)
    load_weights(model, config.weights, name)
    if config.head_init == "zeros" and isinstance(model.head, nn.Linear) and not getattr(model, "head_loaded", False):
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    built: nn.Module = model.eval()
    return built


def _create(name: str, config: ModelConfig, wanted: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The model with random weights by the configuration's seed, and the arguments it was made with."""
    torch.manual_seed(config.seed)
    if config.variant == "register":
        return create_with_registers(name, config, wanted)
    return timm.create_model(name, pretrained=False, **wanted), wanted


def _check_gram(model: nn.Module, config: ModelConfig) -> None:
    """Raise ModelError where the attentions of a relative of the ViT see other tokens than the residual is made for."""
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, config.img_size, config.img_size))
    except RuntimeError as error:
        raise ModelError(f"the Gram residual does not fit the attentions of {config.name!r} ({one_line(error, 80)}): "
                         "set model.gram.enabled=false (--no-gram)") from None


def _short(wanted: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in wanted.items() if v is not None)


def token_count(model: nn.Module) -> int:
    """N: patches plus prefix tokens (class token, registers)."""
    return int(model.patch_embed.num_patches) + int(getattr(model, "num_prefix_tokens", 0))  # type: ignore[union-attr,arg-type]


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
