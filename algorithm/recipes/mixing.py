"""Mixup, CutMix and the loss of a micro-batch; and the seed of everything random in it."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn

from algorithm.models.torchvision_shim import timm
from algorithm.recipes.config import RecipeConfig


def seed_pass(seed: int, update: int, micro: int) -> None:
    """Set Python's, NumPy's and PyTorch's global generators to what (seed, update, number of the micro-batch) says.

    So mixing and drop-path depend on nothing that ran before, on no rank and on no resume.
    """
    words = np.random.SeedSequence([seed, update, micro]).generate_state(4, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002  timm's Mixup draws from the global generator
    torch.manual_seed(int(words[2]) << 32 | int(words[3]))


class Mixing:
    """timm's Mixup and CutMix (Zhang et al. 2018, Yun et al. 2019), where a recipe asks for them."""

    def __init__(self, recipe: RecipeConfig, num_classes: int) -> None:
        augment = recipe.augment
        self.on = augment.mixup > 0 or augment.cutmix > 0
        self._mixup = timm.data.Mixup(
            mixup_alpha=augment.mixup, cutmix_alpha=augment.cutmix, prob=augment.mixup_prob,
            switch_prob=augment.mixup_switch_prob, mode=augment.mixup_mode, label_smoothing=augment.smoothing,
            num_classes=num_classes) if self.on else None

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W), changed in place; labels (B,) -> (B, K) shares, or as they are without mixing."""
        return self._mixup(images, labels) if self._mixup else (images, labels)


def make_loss(recipe: RecipeConfig) -> nn.Module:
    """timm's criterion: cross-entropy or binary cross-entropy; of mixed (already smoothed) targets, or of labels."""
    mixed = recipe.augment.mixup > 0 or recipe.augment.cutmix > 0
    return timm.loss.create_classification_loss("bce" if recipe.loss == "bce" else "ce",
                                                smoothing=recipe.augment.smoothing, soft_targets=mixed)
