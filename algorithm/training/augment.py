"""Shifts and flips of an image, as a microcontroller can do them: on uint8 pixels, in place, drawn by integer hashing.

`runtime/kernels/vt_augment.h` does the same on the device, to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from algorithm.training.config import TrainConfig


class Transform(NamedTuple):
    """Pixels to the right and downwards (negative: left, upwards), after a mirroring left to right or none."""

    dx: int = 0
    dy: int = 0
    flip: bool = False


def transform_of(config: TrainConfig, side: int, image: int, done: int) -> Transform:
    """What becomes of the `image`-th training image in a pass with `done` passes before it; `side`: pixels of the image.

    Passes take turns through `variants`: the first leaves images as they are, every second one flips, and each but the
    first shifts by whole pixels up to `shift` of the side, equally likely, drawn from (seed, variant, image).
    """
    variant = done if config.variants is None else done % config.variants
    if config.augment == "off" or variant == 0:
        return Transform()
    limit = shift_pixels(config, side)
    state = _mix(_mix(_mix(config.seed) + variant) + image)
    dx, dy = (_mix(state + k) % (2 * limit + 1) - limit for k in (1, 2))
    return Transform(dx, dy, config.augment in ("flip", "both") and variant % 2 == 1)


def shift_pixels(config: TrainConfig, side: int) -> int:
    """The largest shift in pixels."""
    return max(1, round(config.shift * side)) if config.augment in ("shift", "both") else 0


def transformed(image: np.ndarray, transform: Transform) -> np.ndarray:
    """(H, W, C) -> (H, W, C): flipped, then shifted; what comes in at an edge repeats it."""
    dx, dy, flip = transform
    height, width = image.shape[:2]
    rows = np.clip(np.arange(height) - dy, 0, height - 1)
    cols = np.clip(np.arange(width) - dx, 0, width - 1)
    return np.ascontiguousarray(image[rows][:, width - 1 - cols if flip else cols])


def _mix(value: int) -> int:
    """A hash of 32 bits (Wellons' lowbias32)."""
    h = value & 0xFFFFFFFF
    h = (h ^ h >> 16) * 0x7FEB352D & 0xFFFFFFFF
    h = (h ^ h >> 15) * 0x846CA68B & 0xFFFFFFFF
    return h ^ h >> 16
