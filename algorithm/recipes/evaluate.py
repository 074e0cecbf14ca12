"""Evaluation by torchmetrics: top-1, top-5, every class, confusion, loss; every image once over all processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithm.data.loading import eval_batches, share_broken
from algorithm.data.streams import Stream
from algorithm.data.transforms import Transform, eval_transform
from algorithm.errors import DataError
from algorithm.models import normalisation
from algorithm.recipes.distributed import World
from algorithm.recipes.reporting import Evaluation

Batches = Iterable[tuple[Tensor, Tensor]]


def evaluate_stream(model: nn.Module, stream: Stream, transform: Any, *, batch: int = 128, workers: int = 0,
                    world: World | None = None, device: torch.device | None = None,
                    autocast: Callable[[], Any] = nullcontext, on_batch: Callable[[int], None] | None = None,
                    pin: bool = False, prefetch: int = 2) -> Evaluation:
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
    return measured.result()


class _Metrics:
    """Sums over images, by torchmetrics, which adds them up over the processes."""

    def __init__(self, outputs: int, device: torch.device) -> None:
        from torchmetrics import SumMetric
        from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.confusion = MulticlassConfusionMatrix(outputs, validate_args=False).to(device)
        self.top5 = MulticlassAccuracy(outputs, top_k=min(5, outputs), average="micro", validate_args=False).to(device)
        self.loss = SumMetric(nan_strategy="disable").to(device).set_dtype(exact)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """logits (B, K), labels (B,)."""
        self.confusion.update(logits, labels)
        self.top5.update(logits, labels)
        self.loss.update(F.cross_entropy(logits, labels, reduction="none").to(self.loss.dtype).sum())

    def result(self) -> Evaluation:
        """Over all processes. Raises DataError where none had an image."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)    # of a process that had no image
            confusion = self.confusion.compute().cpu().numpy().astype(np.int64)
            top5, loss = float(self.top5.compute()), float(self.loss.compute())
        count = int(confusion.sum())
        if count == 0:
            raise DataError("no held-out image could be read: there is nothing to evaluate on")
        with np.errstate(invalid="ignore"):
            per_class = confusion.diagonal() / confusion.sum(1)
        return Evaluation(count, loss / count, float(confusion.trace() / count), top5, per_class, confusion)


def held_out_transform(model: nn.Module, img_size: int, crop_pct: float | None) -> Transform:
    """PIL image -> the model's input (3, img_size, img_size): its own normalisation, interpolation and, where crop_pct is
    None, its own crop."""
    mean, std = normalisation(model)
    cfg: Any = model.pretrained_cfg
    return eval_transform(img_size, mean, std, crop_pct or cfg.get("crop_pct"), cfg.get("interpolation") or "bicubic")
