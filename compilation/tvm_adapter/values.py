"""Symbolic values of the importer: what a Relax variable stands for before it becomes a tensor.

A `View` is a rearrangement of a tensor's elements, kept as the array of flat source indices, so that any
chain of reshape, permute, split, squeeze and slice is recognised by what it does, not by how it is spelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class View:
    """Elements of the tensor (or parameter) `base` in the arrangement `index` (flat indices into base)."""

    base: str
    index: np.ndarray
    parameter: bool = False
    moved: tuple[Any, View, int | None] | None = None   # (Relax rearrangement, what it moved, which part of a split)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.index.shape

    @property
    def plain(self) -> bool:
        """The base itself, possibly reshaped: no element moves."""
        flat = self.index.reshape(-1)
        return bool((flat == np.arange(flat.size)).all())

    def covers(self, size: int) -> bool:
        return self.plain and self.index.size == size


@dataclass
class Constant:
    """A compile-time number or array: a literal, or a buffer of the model."""

    value: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def uniform(self) -> bool:
        """One number, perhaps many times."""
        return self.value.size > 0 and bool((self.value == self.value.reshape(-1)[0]).all())


@dataclass
class Many:
    """A tuple of values."""

    items: list[Any]


@dataclass
class Concat:
    """A concatenation along the token axis that has not been needed as a tensor yet."""

    items: list[Any]
    axis: int
    shape: tuple[int, ...]
    origin: tuple[Any, list[Any]] | None = None
    sole: bool = False              # nothing else reads the last item: its tensor may grow


Value = View | Constant | Many | Concat


def view_of(base: str, shape: tuple[int, ...], parameter: bool = False) -> View:
    return View(base, np.arange(int(np.prod(shape)), dtype=np.int32).reshape(shape), parameter)
