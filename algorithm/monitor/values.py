"""What can be recorded of a step: numbers, histograms, pictures, confusion matrices; as JSON and as objects of wandb."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch

ALL_CELLS = 100  # classes up to which wandb gets the zeros of a confusion matrix, too: it draws no more than 10,000 rows


@dataclass(frozen=True)
class Histogram:
    """counts (bins,) of what lies between edges (bins + 1,), ascending; nonfinite: how many values are no number."""

    counts: tuple[int, ...]
    edges: tuple[float, ...]
    nonfinite: int = 0

    @classmethod
    def of(cls, values: torch.Tensor, bins: int = 64) -> Histogram:
        """Of all elements, between the smallest and the largest that is finite, counted on the values' device."""
        import torch

        flat = values.detach().flatten().float()
        finite = flat[torch.isfinite(flat)]
        if not finite.numel():
            return cls((0,) * bins, tuple(np.linspace(0.0, 1.0, bins + 1).tolist()), flat.numel())
        low, high = (float(v) for v in torch.aminmax(finite))
        if low == high:  # as numpy.histogram does
            low, high = low - 0.5, high + 0.5
        counts = torch.histc(finite, bins, low, high).long().tolist()
        return cls(tuple(counts), tuple(np.linspace(low, high, bins + 1).tolist()), flat.numel() - finite.numel())


@dataclass(frozen=True)
class Picture:
    """An image file (PNG) inside the run folder."""

    path: Path


@dataclass(frozen=True)
class Confusion:
    """matrix (K, K): images by true class (row) and predicted class (column); classes: K names."""

    matrix: np.ndarray = field(repr=False)
    classes: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Confusion) and self.classes == other.classes and np.array_equal(self.matrix, other.matrix)

    def cells(self, zeros: bool = False) -> list[list[int]]:
        """[true class, predicted class, images] of each cell, by default of those that are not zero."""
        shown = np.argwhere((self.matrix != 0) | zeros)
        return [[int(i), int(j), int(self.matrix[i, j])] for i, j in shown]


Value: TypeAlias = "float | int | str | Histogram | Picture | Confusion"


def to_json(value: Value, folder: Path) -> Any:
    """The value as plain JSON: numbers that JSON lacks as "nan", "inf", "-inf", a picture by its path below `folder`."""
    if isinstance(value, Histogram):
        edges = [float(f"{e:.7g}") for e in value.edges]
        return {"counts": list(value.counts), "edges": edges} | ({"nonfinite": value.nonfinite} if value.nonfinite else {})
    if isinstance(value, Picture):
        return {"picture": value.path.relative_to(folder).as_posix()}
    if isinstance(value, Confusion):
        return {"classes": list(value.classes), "cells": value.cells()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def from_json(raw: Any, folder: Path) -> Value:
    """What `to_json` was given. Raises ValueError, KeyError or TypeError for what it never writes."""
    if isinstance(raw, Mapping):
        if "counts" in raw:
            return Histogram(tuple(raw["counts"]), tuple(raw["edges"]), raw.get("nonfinite", 0))
        if "picture" in raw:
            return Picture(folder / raw["picture"])
        matrix = np.zeros((len(raw["classes"]),) * 2, np.int64)
        for i, j, count in raw["cells"]:
            matrix[i, j] = count
        return Confusion(matrix, tuple(raw["classes"]))
    return float(raw) if raw in ("nan", "inf", "-inf") else raw


def to_wandb(wandb: Any, name: str, value: Value) -> Any:
    """The value as the package `wandb` shows it best."""
    if isinstance(value, Histogram):
        return wandb.Histogram(np_histogram=(np.asarray(value.counts), np.asarray(value.edges)))
    if isinstance(value, Picture):
        return wandb.Image(str(value.path))
    if isinstance(value, Confusion):
        names: Sequence[str] = value.classes
        rows = [[names[i], names[j], n] for i, j, n in value.cells(zeros=len(names) <= ALL_CELLS)]
        columns = ["Actual", "Predicted", "nPredictions"]
        return wandb.plot_table(data_table=wandb.Table(columns=columns, data=rows), fields={c: c for c in columns},
                                vega_spec_name="wandb/confusion_matrix/v1", string_fields={"title": name})
    return value
