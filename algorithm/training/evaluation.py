"""Top-1 accuracy, macro F1 and mean loss on held-out images."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithm.data.dataset import Dataset
from algorithm.models.additions import idle_additions
from algorithm.models.lora import LoraLinear
from algorithm.models.vit import images_to_input, input_scale_shift
from algorithm.training.threads import cores, torch_threads


@dataclass
class Evaluation:
    """Of S images and K classes: accuracy within 0..1, mean cross-entropy, image count, the predicted class of each
    image (S,), confusion (K, K) counts by true class (row) and predicted class, and the mean of the classes' F1 scores."""

    accuracy: float
    loss: float
    count: int
    predictions: np.ndarray
    confusion: np.ndarray
    macro_f1: float


def evaluate(model: nn.Module, data: Dataset, batch: int = 16, on_batch: Callable[[int], None] | None = None,
             threads: int | None = None) -> Evaluation:
    """Evaluate in eval mode; on_batch gets the number of images done so far, and ends the work by raising.

    threads: how many batches are computed at once, each by one thread of PyTorch, so that their number changes no bit;
    None = one a core. (PyTorch's own threads wait for each other after every operation, which costs more than it gains
    as soon as anything else runs.) A head that is all zeros makes logits of zeros, so one image is run, to see that it
    does, and the rest is known.
    """
    model.eval()
    device = next(model.parameters()).device
    scale, shift = input_scale_shift(model)
    starts = range(0, len(data), batch)
    workers = max(1, min(threads or cores(), len(starts)))

    def logits_of(first: int, last: int) -> Tensor:
        with torch.inference_mode():
            return model(images_to_input(data.images[first:last], scale, shift).to(device))

    def measure(at: int) -> tuple[np.ndarray, float, int]:
        labels = torch.from_numpy(data.labels[at:at + batch]).to(device)
        logits = logits_of(at, at + batch) if known is None else known.expand(len(labels), -1)
        loss = float(F.cross_entropy(logits, labels, reduction="sum"))
        return logits.argmax(1).cpu().numpy(), loss, logits.shape[1]

    parts: list[tuple[np.ndarray, float, int]] = []
    with torch_threads(1), idle_additions(model), \
            ThreadPoolExecutor(workers, "evaluate", torch.set_num_threads, (1,)) as pool:
        known = _constant_logits(model, logits_of)
        try:
            for at, part in zip(starts, pool.map(measure, starts), strict=True):
                parts.append(part)
                if on_batch:
                    on_batch(min(at + batch, len(data)))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    predicted = np.concatenate([p for p, _, _ in parts])
    loss, classes = sum(p for _, p, _ in parts) / len(data), parts[0][2]
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (data.labels, predicted), 1)
    return Evaluation(int(confusion.trace()) / len(data), loss, len(data), predicted, confusion, macro_f1(confusion))


def macro_f1(confusion: np.ndarray) -> float:
    """The mean of 2 TP / (2 TP + FP + FN) over the classes that occur, as label or as prediction."""
    both = confusion.sum(0) + confusion.sum(1)
    return float(np.mean(2 * confusion.diagonal()[both > 0] / both[both > 0]))


def _constant_logits(model: nn.Module, logits_of: Callable[[int, int], Tensor]) -> Tensor | None:
    """The logits (1, K) of every image, zeros, where the head is all zeros and the first image shows that nothing comes
    after it."""
    head: Any = getattr(model, "head", None)
    if not isinstance(head, nn.Linear) or bool(head.weight.any()) or (head.bias is not None and bool(head.bias.any())):
        return None
    if isinstance(head, LoraLinear) and bool(head.lora_b.any()):
        return None
    logits = logits_of(0, 1)
    return None if bool(logits.any()) else torch.zeros_like(logits)
