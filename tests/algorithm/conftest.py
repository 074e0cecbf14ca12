"""Small models and data for the algorithm tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithm.data import Dataset
from algorithm.models import ModelConfig, build_model

SMALL: dict[str, Any] = {"name": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 8, "num_classes": 3,
                         "weights": "none", "head_init": "timm",
                         "gram": {"enabled": False}, "extra": {"depth": 3, "embed_dim": 16, "num_heads": 2}}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def small_model(**changes: Any) -> nn.Module:
    """A 3-block ViT, 16 features, 5 tokens, 3 classes, with no zero among its parameters."""
    model = build_model(ModelConfig(**{**SMALL, **changes}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def small_data(count: int = 6, size: int = 16, classes: int = 3) -> Dataset:
    rng = np.random.default_rng(3)
    return Dataset(rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8), np.arange(count) % classes,
                   [str(c) for c in range(classes)], "random")
