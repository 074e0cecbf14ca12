"""A training loop in a few lines, which calls a Watch as the engine does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithm.models import ModelConfig, build_model
from algorithm.models.torchvision_shim import timm
from algorithm.monitor import Monitor, MonitorConfig, Watch
from algorithm.sparse import UpdatePlan
from algorithm.sparse.apply import AppliedPlan

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
SAMPLES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([0, 1, 2, 3, 4])
EVERYTHING: dict[str, Any] = {
    "activations_every": 2, "gram_every": 2, "histograms_every": 2, "vis_freq": 1, "analysis_freq": 1, "vis_images": 2,
    "spec_monitor": True, "spec_every": 2, "spec_topk": 2, "spec_interval": 3}
STEPS, PASSES, LR = 4, 2, 0.05


@dataclass
class Evaluated:
    """An evaluation as the engine gives it."""

    loss: float = 1.25
    top1: float = 0.5
    top5: float = 1.0
    per_class: Any = None
    confusion: Any = None

    def __post_init__(self) -> None:
        self.per_class = np.array([1.0, 0.0, 0.5, 0.5, 0.5, np.nan])
        self.confusion = np.diag([4, 0, 2, 2, 2, 0]) + np.eye(6, k=1, dtype=int)


def model_of(**changes: Any) -> nn.Module:
    model = build_model(ModelConfig(**{
        "name": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 8, "num_classes": 6, "weights": "none",
        "head_init": "timm", "gram": {"enabled": True, "rank": 2},
        "extra": {"depth": 2, "embed_dim": 16, "num_heads": 2}, **changes}), drop_path=0.3)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def watcher(folder: Path, model: nn.Module, ema: nn.Module | None = None, first_step: int = 0,
            wandb: str = "off", **config: Any) -> Watch:
    """With everything on, unless `config` says otherwise; a measurement that fails fails the test."""
    settings = MonitorConfig(**{**EVERYTHING, "wandb": wandb, **config})
    return Watch(settings, Monitor(settings, folder, warn=_fail), model, ema=ema, samples=SAMPLES, sample_labels=LABELS,
                 classes=CLASSES, progress_every=2, first_step=first_step)


def _fail(text: str) -> None:
    raise AssertionError(text)


@dataclass
class Run:
    """A model in training; `state` is what a checkpoint would hold."""

    model: nn.Module
    ema: Any
    optimizer: torch.optim.Optimizer
    watch: Watch | None = None

    def state(self) -> dict[str, Any]:
        assert self.watch
        return {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "optimizer": self.optimizer.state_dict(),
                "watch": self.watch.state()}


def start(watch: Callable[..., Watch] | None = None, plan: UpdatePlan | None = None, **changes: Any) -> tuple[Run, Any]:
    """A run, and the plan in force on it (a context)."""
    model = model_of(**changes)
    applied = AppliedPlan(model, plan) if plan else nullcontext()
    leaves = applied.leaves.values() if isinstance(applied, AppliedPlan) else model.parameters()
    ema = timm.utils.ModelEmaV3(model, decay=0.5)
    run = Run(model, ema, torch.optim.SGD(leaves, lr=LR, momentum=0.9))
    if watch:
        run.watch = watch(model, ema)
    return run, applied


def load(run: Run, state: Mapping[str, Any]) -> None:
    run.model.load_state_dict(state["model"])
    run.ema.load_state_dict(state["ema"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.watch:
        run.watch.load_state(state["watch"])


def batch(step: int, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + k)
    return torch.randn(3, 3, 16, 16, generator=generator), torch.randint(0, 6, (3,), generator=generator)


def train(run: Run, steps: range = range(STEPS), forward: Any = None, sync: Callable[[], None] = lambda: None) -> None:
    """Two passes an update, drop-path, momentum, an average; an evaluation after every second update."""
    watch = run.watch
    for step in steps:
        if watch:
            watch.before_step(step)
        torch.manual_seed(step)
        run.model.train()
        losses = []
        for k in range(PASSES):
            images, labels = batch(step, k)
            loss = F.cross_entropy((run.model if forward is None else forward)(images), labels) / PASSES
            loss.backward()
            losses.append(loss.detach())
        if watch:
            watch.before_update(step)
        run.optimizer.step()
        sync()
        run.ema.update(run.model)
        if watch:
            watch.after_step(step, loss=sum(losses), accuracy=0.25, lr=LR)
        run.optimizer.zero_grad()
        if watch and step % 2 == 1:
            watch.evaluated(step, Evaluated())
            watch.evaluated(step, Evaluated(), prefix="ValEMA")
