"""Data sets: image by image for training by recipe (streams, transforms, loading), or few-shot arrays of uint8."""

from __future__ import annotations

from typing import TYPE_CHECKING

from algorithm.data.config import DataConfig
from algorithm.lazy import loader

if TYPE_CHECKING:
    from algorithm.data.arrays import load_data
    from algorithm.data.dataset import Dataset, check_labels, few_shot, resize
    from algorithm.data.sources import load_image
    from algorithm.data.streams import Stream, open_streams

__getattr__ = loader(__name__, {
    "arrays": ("load_data",), "dataset": ("Dataset", "check_labels", "few_shot", "resize"),
    "sources": ("load_image",), "streams": ("Stream", "open_streams")})
__all__ = ["DataConfig", "Dataset", "Stream", "check_labels", "few_shot", "load_data", "load_image", "open_streams",
           "resize"]
