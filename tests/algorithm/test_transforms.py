"""Transforms are timm's and torchvision's own, on the same seed; options that would have no effect are refused."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps

from algorithm.data.transforms import eval_transform, train_transform
from algorithm.errors import ConfigError
from algorithm.models.torchvision_shim import timm
from algorithm.recipes.config import AugmentConfig
from algorithm.schema import parse

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)).resize((70, 50))
SEEDS = range(12)
NUMPY: Any = np.random  # the global generator, which timm draws from


def seed(k: int) -> None:
    random.seed(k)
    NUMPY.seed(k)
    torch.manual_seed(k)


def ours(k: int, **augment: Any) -> torch.Tensor:
    seed(k)
    return train_transform(AugmentConfig(**augment), 32, MEAN, STD)(PICTURE)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Pillow's before it refused 0 bits."""
    return image.point([i & ~(2 ** (8 - bits) - 1) for i in range(256)] * 3)


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m10-inc1-p1.0", "original-mstd3", "v0-mstd3",
                                  "augmix-m10-mstd3"])
def test_posterising_to_no_bits_is_black_as_timm_means_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = range(200)
    ours_all = [ours(k, aa=text, hflip=0) for k in seeds]
    black = sum(bool((image == image[:, :1, :1]).all()) for image in ours_all)
    monkeypatch.setattr(ImageOps, "posterize", posterize)
    theirs = timm.data.create_transform(32, is_training=True, auto_augment=text, interpolation="random", hflip=0, mean=MEAN,
                                        std=STD)
    for k, mine in zip(seeds, ours_all, strict=True):
        seed(k)
        assert torch.equal(theirs(PICTURE), mine)
    assert black or not text.startswith("rand")


def test_the_strong_policy_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageOps, "posterize", posterize)
    theirs = timm.data.create_transform(32, is_training=True, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25,
                                        re_mode="pixel", interpolation="random", color_jitter=None, mean=MEAN, std=STD)
    seen = set()
    for k in SEEDS:
        seed(k)
        expected = theirs(PICTURE)
        seen.add(expected.numpy().tobytes())
        assert torch.equal(ours(k, aa="rand-m9-mstd0.5-inc1", reprob=0.25), expected)
    assert len(seen) == len(SEEDS)


def test_colour_jitter_crops_and_flips_are_timms() -> None:
    theirs = timm.data.create_transform(
        32, is_training=True, color_jitter=0.4, scale=(0.5, 0.9), ratio=(0.8, 1.25), hflip=0.0, vflip=0.7, mean=MEAN,
        std=STD, interpolation="lanczos", re_prob=1.0, re_mode="const", re_count=3)
    for k in SEEDS:
        seed(k)
        assert torch.equal(theirs(PICTURE), ours(k, color_jitter=0.4, scale=[0.5, 0.9], ratio=[0.8, 1.25], hflip=0,
                                                 vflip=0.7, interpolation="lanczos", reprob=1, remode="const", recount=3))


def three_by_hand(simple: bool) -> torch.Tensor:
    """DeiT III's recipe out of torchvision's and Pillow's parts, in its order."""
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision import transforms as T

    if simple:
        image = T.Resize(32, interpolation=T.InterpolationMode.BICUBIC)(PICTURE)
        image = T.RandomCrop(32, padding=4, padding_mode="reflect")(image)
    else:
        image = RandomResizedCropAndInterpolation(32, scale=(0.08, 1.0), interpolation="bicubic")(PICTURE)
    image = T.RandomHorizontalFlip()(image)
    which = random.choice(["solarise", "grey", "blur"])
    if which == "solarise":
        image = ImageOps.solarize(image, 128)
    elif which == "grey":
        image = T.Grayscale(3)(image)
    else:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
    image = T.ColorJitter(0.3, 0.3, 0.3)(image)
    return T.Normalize(torch.tensor(MEAN), torch.tensor(STD))(T.functional.to_tensor(image))


@pytest.mark.parametrize("simple", [False, True])
def test_three_augment_is_deit_iiis(simple: bool) -> None:
    seen = set()
    for k in SEEDS:
        seed(k)
        expected = three_by_hand(simple)
        seen.add(expected.numpy().tobytes())
        assert torch.equal(ours(k, policy="three", color_jitter=0.3, simple_crop=simple), expected)
    assert len(seen) == len(SEEDS)


def test_the_simple_crop_with_timms_policy() -> None:
    from torchvision import transforms as T

    for k in SEEDS:
        seed(k)
        image = T.RandomHorizontalFlip()(T.RandomCrop(32, padding=4, padding_mode="reflect")(
            T.Resize(32, interpolation=T.InterpolationMode.BICUBIC)(PICTURE)))
        image = timm.data.rand_augment_transform("rand-m9-n3", {"translate_const": 14, "img_mean": (124, 116, 104),
                                                                "interpolation": Image.Resampling.BICUBIC})(image)
        expected = T.Normalize(torch.tensor(MEAN), torch.tensor(STD))(T.functional.to_tensor(image))
        assert torch.equal(ours(k, simple_crop=True, aa="rand-m9-n3"), expected)


@pytest.mark.parametrize("crop", [1.0, 0.9, None])
def test_evaluation_is_timms(crop: float | None) -> None:
    theirs = timm.data.create_transform(32, crop_pct=crop, interpolation="bicubic", mean=MEAN, std=STD)
    assert torch.equal(eval_transform(32, MEAN, STD, crop)(PICTURE), theirs(PICTURE))
    small = eval_transform(32, MEAN, STD, 1.0, "bilinear")(Image.new("RGB", (8, 8), (255, 0, 0)))  # upsampled
    assert small.shape == (3, 32, 32) and torch.allclose(small[:, 3, 4], (torch.tensor([1.0, 0, 0]) - torch.tensor(MEAN))
                                                         / torch.tensor(STD))


def test_no_augmentation_is_the_centre_and_no_chance() -> None:
    assert torch.equal(ours(1, policy="none"), ours(2, policy="none"))
    assert torch.equal(ours(1, policy="none"), eval_transform(32, MEAN, STD, 1.0)(PICTURE))


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-n2-m15-mmax30-p0.5", "rand-m6-n3-t3a", "rand-tweights-mstd1",
                                  "augmix-m5-w4-d2", "original-mstd0.5", "v0", "3a"])
def test_timms_texts(text: str) -> None:
    assert ours(0, aa=text).shape == (3, 32, 32)


@pytest.mark.parametrize(("augment", "match"), [
    ({"aa": "rnd-m9"}, "'rnd' is no policy of timm .nearest known: 'rand'"),
    ({"aa": "rand-m9-msdt0.5"}, "'msdt0.5' is no part"),
    ({"aa": "rand-m"}, "'m' is no part"), ({"aa": "rand-m9.5"}, "'m9.5' is no part"), ({"aa": ""}, "no policy"),
    ({"aa": "rand-m9", "color_jitter": 0.4}, "color_jitter has no effect beside aa"),
    ({"policy": "none", "reprob": 0.1}, "reprob has no effect with policy=none"),
    ({"policy": "none", "interpolation": "random"}, "interpolation=random"),
    ({"policy": "three", "aa": "v0"}, "aa has no effect with policy=three"),
    ({"simple_crop": True, "scale": [0.5, 1]}, "simple_crop takes its place"), ({"remode": "rand"}, "without reprob"),
    ({"simple_crop": True, "interpolation": "random"}, "interpolation=random"), ({"scale": [0.5, 0.1]}, "lower one first"),
    ({"scale": [0.5, 2]}, "lower one first"), ({"interpolation": "cubic"}, "interpolation"),
])
def test_options_without_effect_and_typing_errors(augment: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parse(AugmentConfig, augment)
