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


def trained_leaves(model: nn.Module) -> dict[str, Tensor]:
    """What an optimiser updates, by parameter name: whole parameters, and of a sliced matrix the slice
    (`algorithm.sparse.apply` keeps it as `plan_part`)."""
    leaves: dict[str, Tensor] = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name, module in model.named_modules():
        part = getattr(module, "plan_part", None)
        if isinstance(part, Tensor):
            leaves[f"{name}.weight"] = part
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
    _before: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)

    @torch.no_grad()
    def remember(self) -> None:
        """Copy the trained values before an update, once however many ask."""
        if not self._before:
            self._before = [(n, p, p.detach().clone()) for n, p in trained_leaves(self.model).items()]

    @torch.no_grad()
    def updates(self) -> dict[str, Tensor]:
        """By name, how far the values moved since `remember`."""
        return {n: p.detach() - old for n, p, old in self._before}

    def forget(self) -> None:
        """Let the copies go."""
        self._before = []

    def caption(self, index: int) -> str:
        """The class name of a sample, or its label, or nothing."""
        label: Any = None if self.labels is None else int(self.labels[index])
        return "" if label is None else self.classes[label] if label < len(self.classes) else str(label)
