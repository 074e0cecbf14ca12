"""The ViT family through timm, the Gram residual, LoRA, and pretrained weights."""

from __future__ import annotations

from algorithm.models import torchvision_shim  # noqa: F401  (first: it must run before timm)
from algorithm.models.config import GramConfig, LoraConfig, ModelConfig
from algorithm.models.gram import add_gram, gram_residual
from algorithm.models.lora import LoraLinear, add_lora
from algorithm.models.vit import build_model, images_to_input, input_scale_shift, normalisation, token_count

__all__ = ["GramConfig", "LoraConfig", "LoraLinear", "ModelConfig", "add_gram", "add_lora", "build_model",
           "gram_residual", "images_to_input", "input_scale_shift", "normalisation", "token_count"]
