"""Record a training run as a trace that C can replay: in float32 and in float64, from the same initial weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algorithm.errors import DataError
from algorithm.models.vit import images_to_input, input_scale_shift
from algorithm.sparse.apply import AppliedPlan
from algorithm.sparse.plan import UpdatePlan
from algorithm.training.checkpoint import read_safetensors, write_safetensors
from algorithm.training.step import Sgd, train_step

FORMAT = "vit-trace-1"


@dataclass
class Trace:
    """A recorded run of S steps.

    images (S, H, W, C) uint8, labels (S,) int64, losses32 and losses64 (S,) float64, and by parameter name the whole
    tensors: init and final32 (float32), final64 (float64). metadata: format, model, plan, lr, momentum, scale, shift
    (the input is uint8 * scale + shift), steps.
    """

    images: np.ndarray
    labels: np.ndarray
    losses32: np.ndarray
    losses64: np.ndarray
    init: dict[str, np.ndarray]
    final32: dict[str, np.ndarray]
    final64: dict[str, np.ndarray]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> UpdatePlan:
        """The plan that was trained."""
        return UpdatePlan.from_dict(self.metadata["plan"])

    def save(self, path: str | Path) -> None:
        """Safetensors: images, labels, losses, losses32, losses64, init/, final/, final32/, final64/<parameter>.

        `losses` and `final/` are the recorded run, which is the float32 one.
        """
        arrays: dict[str, np.ndarray] = {
            "images": self.images, "labels": self.labels, "losses": self.losses32, "losses32": self.losses32,
            "losses64": self.losses64}
        for kind, group in (("init", self.init), ("final", self.final32), ("final32", self.final32),
                            ("final64", self.final64)):
            arrays |= {f"{kind}/{n}": a for n, a in group.items()}
        tensors = {k: torch.from_numpy(np.array(a, copy=True)) for k, a in arrays.items()}
        write_safetensors(path, tensors, self.metadata)

    @staticmethod
    def load(path: str | Path) -> Trace:
        """Read what `save` wrote. Raises CheckpointError."""
        tensors, metadata = read_safetensors(path)
        arrays = {k: v.numpy() for k, v in tensors.items()}
        groups: dict[str, dict[str, np.ndarray]] = {"init": {}, "final32": {}, "final64": {}}
        for key, array in arrays.items():
            kind, _, name = key.partition("/")
            if kind in groups:
                groups[kind][name] = array
        return Trace(arrays["images"], arrays["labels"], arrays["losses32"], arrays["losses64"], groups["init"],
                     groups["final32"], groups["final64"], metadata)


def run_steps(model: nn.Module, plan: UpdatePlan, images: np.ndarray, labels: np.ndarray, lr: float, momentum: float,
              dtype: torch.dtype, device: str | torch.device = "cpu") -> tuple[np.ndarray, dict[str, Tensor]]:
    """Train a copy of the model in `dtype`; the model stays as it is.

    Returns the losses (S,) float64, each before its update, and the trained parameters, whole, by name.
    """
    scale, shift = input_scale_shift(model)
    own = copy.deepcopy(model).to(device=device, dtype=dtype).eval()
    losses = np.zeros(len(images))
    with AppliedPlan(own, plan) as applied:
        sgd = Sgd(applied, lr, momentum)
        for step, (image, label) in enumerate(zip(images, labels, strict=True)):
            x = images_to_input(image[None], scale, shift, dtype).to(device)
            losses[step] = train_step(own, x, int(label), sgd, step)
    named = dict(own.named_parameters())
    return losses, {n: named[n].detach().cpu() for n in plan.parameters}


def record_trace(model: nn.Module, plan: UpdatePlan, images: np.ndarray, labels: np.ndarray, lr: float,
                 momentum: float = 0.0, path: str | Path | None = None,
                 device: str | torch.device | None = None) -> Trace:
    """Run len(images) steps from the model's present weights in float32 and in float64; save when a path is given.

    images (S, H, W, C) uint8, labels (S,). device None: cuda where present, else the CPU. The model is not changed.
    Raises NonFiniteLossError, DataError, PlanError.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise DataError(f"a trace needs as many images as labels, found {len(images)} and {len(labels)}")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    losses32, final32 = run_steps(model, plan, images, labels, lr, momentum, torch.float32, device)
    losses64, final64 = run_steps(model, plan, images, labels, lr, momentum, torch.float64, device)
    named = dict(model.named_parameters())
    scale, shift = input_scale_shift(model)
    config = getattr(model, "vit_config", None)
    metadata = {"format": FORMAT, "model": config.model_dump() if config else {}, "plan": plan.to_dict(), "lr": lr,
                "momentum": momentum, "scale": [float(v) for v in scale], "shift": [float(v) for v in shift],
                "steps": len(images), "device": str(device), "torch": torch.__version__}
    trace = Trace(np.asarray(images, np.uint8), np.asarray(labels, np.int64), losses32, losses64,
                  {n: named[n].detach().cpu().numpy().copy() for n in plan.parameters},
                  {n: t.numpy() for n, t in final32.items()}, {n: t.numpy() for n, t in final64.items()}, metadata)
    if path is not None:
        trace.save(path)
    return trace
