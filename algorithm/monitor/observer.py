"""What every observer of a training is: what it looks at, when it is asked, what it may remember."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from algorithm.monitor.monitor import Monitor
from algorithm.monitor.values import Value

Values = dict[str, Value]
PART = "plan_part"  # the attribute that holds the trained slice of a matrix


class Evaluation(Protocol):
    """What `evaluated` is given: of K classes, shares within 0..1."""

    @property
    def loss(self) -> float: ...
    @property
    def top1(self) -> float: ...
    @property
    def top5(self) -> float: ...
    @property
    def per_class(self) -> np.ndarray:
        """(K,), NaN for a class without images."""
    @property
    def confusion(self) -> np.ndarray:
        """(K, K) counts by true class (row) and predicted class."""


class Observer:
    """Measures every `every` updates and every `freq` evaluations of the model (0 = never), the first of each included.

    Watch calls the methods in this order, for a step that is due. None changes the model; each leaves no hook behind.
    """

    every: int = 0
    freq: int = 0

    def before_step(self, step: int) -> None:
        """Before the first forward of an update."""

    def before_update(self, step: int) -> None:
        """When its gradients are complete."""

    def after_step(self, step: int) -> Values:
        """After the update; what was measured of it."""
        return {}

    def evaluated(self, step: int) -> Values:
        """After an evaluation of the model."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What it must remember over a resume, on the CPU."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""

    def close(self) -> None:
        """Take everything off the model, whatever happened."""


def inner(model: nn.Module) -> nn.Module:
    """The model inside torch.compile, DistributedDataParallel, or timm's moving average."""
    while True:
        wrapped = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(wrapped, nn.Module):
            return model
        model = wrapped


def is_compiled(model: nn.Module) -> bool:
    """Whether a forward of the model as it was given runs code of torch.compile, which sees no hooks."""
    if getattr(model, "_orig_mod", None) is not None or getattr(model, "_compiled_call_impl", None) is not None:
        return True
    wrapped = getattr(model, "module", None)
    return isinstance(wrapped, nn.Module) and is_compiled(wrapped)


@dataclass(frozen=True)
class Leaf:
    """What an optimiser updates of a parameter: all of it, or of a sliced matrix some columns or rows of `whole`."""

    trained: Tensor
    whole: Tensor
    axis: int = 0
    index: Tensor | None = None

    def values(self) -> Tensor:
        """Of the parameter, as it is now, what was trained when this was made: a sparsity that is dynamic goes on to
        others, while the change is still of these."""
        whole = self.whole.detach()
        return whole if self.index is None else whole.index_select(self.axis, self.index)


def trained_leaves(model: nn.Module) -> dict[str, Leaf]:
    """By parameter name. Of a sliced matrix the slice is a tensor of its own (`algorithm.sparse.apply`)."""
    leaves = {n: Leaf(p, p) for n, p in model.named_parameters() if p.requires_grad and not n.endswith(f".{PART}")}
    for name, module in model.named_modules():
        part, index, weight = (getattr(module, n, None) for n in (PART, "plan_index", "weight"))
        if isinstance(part, Tensor) and isinstance(index, Tensor) and isinstance(weight, Tensor):
            leaves[f"{name}.weight"] = Leaf(part, weight, int(bool(module.plan_cols)), index.clone())
    return leaves


@dataclass
class Scene:
    """What observers look at. samples (S, C, H, W): fixed, normalised; labels (S,); hooks: whether a forward sees them."""

    model: nn.Module
    monitor: Monitor
    ema: nn.Module | None = None
    samples: Tensor | None = None
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    hooks: bool = True
    _before: list[tuple[str, Leaf, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.samples is not None and not len(self.samples):
            self.samples = self.labels = None

    @torch.no_grad()
    def remember(self) -> None:
        """Copy the trained values before an update, once however many ask."""
        if not self._before:
            self._before = [(n, leaf, leaf.values().clone()) for n, leaf in trained_leaves(self.model).items()]

    @torch.no_grad()
    def updates(self) -> dict[str, Tensor]:
        """By name, how far the values moved since `remember`."""
        return {n: leaf.values() - old for n, leaf, old in self._before}

    def forget(self) -> None:
        """Let the copies go."""
        self._before = []

    def caption(self, index: int) -> str:
        """The class name of a sample, or its label, or nothing."""
        label: Any = None if self.labels is None else int(self.labels[index])
        return "" if label is None else self.classes[label] if label < len(self.classes) else str(label)
