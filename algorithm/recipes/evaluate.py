"""Evaluation by torchmetrics: top-1, top-5, every class, confusion, loss; every image once over all processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithm.data.loading import eval_batches, share_broken
from algorithm.data.streams import Stream
from algorithm.errors import DataError
from algorithm.recipes.distributed import World
from algorithm.recipes.reporting import Evaluation

Batches = Iterable[tuple[Tensor, Tensor]]


def evaluate_stream(model: nn.Module, stream: Stream, transform: Any, *, batch: int = 128, workers: int = 0,
                    world: World | None = None, device: torch.device | None = None, autocast: Callable[[], Any] = nullcontext,
                    on_batch: Callable[[int], None] | None = None, pin: bool = False, prefetch: int = 2) -> Evaluation:
    """Evaluate a model, in eval mode and left in the mode that it was in, on a stream of images.

    world: of several processes each takes its share, and every one gets the same result. device None: the model's.
    Raises DataError: too many broken images, or labels that the model cannot predict.
    """
    world = world or World()
    batches = eval_batches(stream, transform, batch, world.rank, world.size, workers, pin, prefetch)
    result = evaluate_batches(model, batches, stream.classes, device=device, autocast=autocast, on_batch=on_batch)
    share_broken(stream)
    return result


def evaluate_batches(model: nn.Module, batches: Batches, classes: Sequence[str], *, device: torch.device | None = None,
                     autocast: Callable[[], Any] = nullcontext, on_batch: Callable[[int], None] | None = None) -> Evaluation:
    """`evaluate_stream` over this process's batches: images (B, 3, H, W), labels (B,). on_batch: images done so far."""
    device = device or next(model.parameters()).device
    was_training = model.training
    model.eval()
    outputs, done, measured = int(model.num_classes), 0, _Metrics(int(model.num_classes), device)  # type: ignore[arg-type]
    if len(classes) > outputs:
        raise DataError(f"the data have {len(classes)} classes, the model predicts {outputs}: set model.num_classes "
                        f"(--num-classes {len(classes)})")
    try:
        with torch.inference_mode():
            for images, labels in batches:
                labels = labels.to(device, non_blocking=True)
                with autocast():
                    logits = model(images.to(device, non_blocking=True))
                measured.update(logits.float(), labels)
                done += len(labels)
                if on_batch:
                    on_batch(done)
    finally:
        model.train(was_training)
    return measured.result(classes)


class _Metrics:
    """Sums over images, by torchmetrics, which adds them up over the processes."""

    def __init__(self, outputs: int, device: torch.device) -> None:
        from torchmetrics import MetricCollection, SumMetric
        from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
        self.k = min(5, outputs)
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.confusion = MulticlassConfusionMatrix(outputs, validate_args=False).to(device)
        self.accuracy = MetricCollection({"top": MulticlassAccuracy(outputs, top_k=self.k, average="micro",
                                                                    validate_args=False)}).to(device)
        self.loss = SumMetric(nan_strategy="ignore").set_dtype(exact).to(device)
        self.nan = SumMetric().to(device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.confusion.update(logits, labels)
        self.accuracy.update(logits, labels)
        losses = F.cross_entropy(logits, labels, reduction="none")
        self.loss.update(losses.to(self.loss.value.dtype).sum())

    def result(self, classes: Sequence[str]) -> Evaluation:
        raise NotImplementedError
