"""What an evaluation says. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Evaluation:
    """Of `count` images and K classes: mean cross-entropy; top1, top5 (of min(5, K)) within 0..1; per_class (K,) top-1 of
    each class, NaN where it has no image; confusion (K, K) counts by true class (row) and predicted class."""

    count: int
    loss: float
    top1: float
    top5: float
    per_class: np.ndarray
    confusion: np.ndarray
