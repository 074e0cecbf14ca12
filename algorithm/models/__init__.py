"""The ViT family through timm, the Gram residual, LoRA, and pretrained weights. All but the configuration needs PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from algorithm.lazy import loader
from algorithm.models.config import GramConfig, LoraConfig, ModelConfig

if TYPE_CHECKING:
    from algorithm.models.features import get_attention_maps, get_patch_tokens
    from algorithm.models.gram import add_gram, gram_residual
    from algorithm.models.lora import LoraLinear, add_lora
    from algorithm.models.vit import build_model, images_to_input, input_scale_shift, normalisation, token_count

__getattr__ = loader(__name__, {
    "features": ("get_attention_maps", "get_patch_tokens"),
    "gram": ("add_gram", "gram_residual"), "lora": ("LoraLinear", "add_lora"),
    "vit": ("build_model", "images_to_input", "input_scale_shift", "normalisation", "token_count")})
__all__ = ["GramConfig", "LoraConfig", "LoraLinear", "ModelConfig", "add_gram", "add_lora", "build_model",
           "get_attention_maps", "get_patch_tokens", "gram_residual", "images_to_input", "input_scale_shift",
           "normalisation", "token_count"]
