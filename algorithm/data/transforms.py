"""Image -> tensor, by timm's and torchvision's parts: random for training, fixed for evaluation.

Mixup, CutMix and label smoothing act on batches; they are the training's. What is random draws from the global generators
of Python, NumPy and PyTorch, which `loading` seeds for each image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL import Image

from algorithm.models.torchvision_shim import timm
from algorithm.recipes.config import AugmentConfig

Transform = Callable[[Image.Image], torch.Tensor]
Three = Sequence[float]  # one number a channel


def train_transform(augment: AugmentConfig, img_size: int, mean: Three, std: Three) -> Transform:
    """PIL RGB of any size -> float32 (3, img_size, img_size), normalised, by the policy of `augment`.

    none: resize and centre crop. timm: random resized crop, flips, `aa` or colour jitter, random erasing
    (`timm.data.create_transform`). three: DeiT III's 3-Augment (Touvron et al. 2022, section 3.2): crop and flips, one of
    grey, solarise at 128 and Gaussian blur of 0.1 to 2.0 (timm's `3a`), colour jitter. simple_crop puts the paper's simple
    random crop in the place of the random resized one.
    """
    if augment.policy == "none":
        return _create(img_size, mean, std, is_training=True, no_aug=True, interpolation=_interpolation(augment))
    first, second, last = _create(
        img_size, mean, std, is_training=True, separate=True, scale=tuple(augment.scale), ratio=tuple(augment.ratio),
        hflip=augment.hflip, vflip=augment.vflip, auto_augment="3a" if augment.policy == "three" else augment.aa,
        color_jitter=augment.color_jitter or None, interpolation=_interpolation(augment), re_prob=augment.reprob,
        re_mode=augment.remode, re_count=augment.recount)
    parts = [*first.transforms]
    if augment.simple_crop:
        parts[:1] = _simple_crop(img_size, _interpolation(augment))
    _mend_posterize(second.transforms)
    return type(first)([*parts, *second.transforms, *last.transforms])  # torchvision's Compose


def eval_transform(img_size: int, mean: Three, std: Three, crop_pct: float | None = None,
                   interpolation: str = "bicubic") -> Transform:
    """PIL RGB of any size -> float32 (3, img_size, img_size), normalised: timm's evaluation transform.

    crop_pct: the share of the resized shorter side that the central square takes; None = timm's 0.875. DeiT III: 1.0.
    """
    return _create(img_size, mean, std, crop_pct=crop_pct, interpolation=interpolation)


def _create(img_size: int, mean: Three, std: Three, **options: Any) -> Any:
    return timm.data.create_transform(img_size, mean=tuple(mean), std=tuple(std), **options)


def _interpolation(augment: AugmentConfig) -> str:
    """null: each policy's own, that is timm's random choice, DeiT III's bicubic."""
    own = "random" if augment.policy == "timm" and not augment.simple_crop else "bicubic"
    return augment.interpolation or own


def _mend_posterize(transforms: Iterable[Any]) -> None:
    """timm's posterise may keep 0 bits, which is black; Pillow 13 refuses that (93 of 60,000, rand-m9-mstd0.5-inc1)."""
    for transform in transforms:
        policies = getattr(transform, "policy", None) or [getattr(transform, "ops", [])]
        for op in (op for ops in policies for op in ops):
            if op.aug_fn is timm.data.auto_augment.posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    black = bits < 1
    return Image.new(image.mode, image.size) if black else timm.data.auto_augment.posterize(image, bits, **options)


def _simple_crop(img_size: int, interpolation: str) -> list[Any]:
    """Resize, then a random square of the image reflected by 4 pixels at its borders (DeiT III, "simple random crop")."""
    from timm.data.transforms import str_to_interp_mode
    from torchvision import transforms

    return [transforms.Resize(img_size, interpolation=str_to_interp_mode(interpolation)),
            transforms.RandomCrop(img_size, padding=4, padding_mode="reflect")]
