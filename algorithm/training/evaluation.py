"""Top-1 accuracy and mean loss on held-out images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from algorithm.data.dataset import Dataset
from algorithm.models.vit import images_to_input, input_scale_shift


@dataclass
class Evaluation:
    """accuracy within 0..1, mean cross-entropy, image count, and the predicted class of each image (S,)."""

    accuracy: float
    loss: float
    count: int
    predictions: np.ndarray


@torch.inference_mode()
def evaluate(model: nn.Module, data: Dataset, batch: int = 16,
             on_batch: Callable[[int], None] | None = None) -> Evaluation:
    """Evaluate in eval mode; on_batch gets the number of images done so far."""
    model.eval()
    device = next(model.parameters()).device
    scale, shift = input_scale_shift(model)
    predictions, total = [], 0.0
    for at in range(0, len(data), batch):
        x = images_to_input(data.images[at:at + batch], scale, shift).to(device)
        labels = torch.from_numpy(data.labels[at:at + batch]).to(device)
        logits = model(x)
        total += float(F.cross_entropy(logits, labels, reduction="sum"))
        predictions.append(logits.argmax(1).cpu().numpy())
        if on_batch:
            on_batch(min(at + batch, len(data)))
    predicted = np.concatenate(predictions)
    return Evaluation(float((predicted == data.labels).mean()), total / len(data), len(data), predicted)
