"""Which pixels the score of a class depends on, through captum. The model is left as it was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum.attr import InputXGradient, Saliency
from torch import Tensor, nn

from algorithm.analysis.observing import observed
from algorithm.errors import AnalysisError

METHODS = ("gradient", "gradient-x-input")


def predicted(model: nn.Module, images: Tensor) -> Tensor:
    """The class of the highest logit of each image: (B,) int64. images (B, C, H, W), normalised."""
    with observed(model), torch.no_grad():
        logits: Tensor = model(images)
    return logits.argmax(dim=-1)


def saliency(model: nn.Module, images: Tensor, classes: Tensor | Sequence[int] | None = None,
             method: str = "gradient") -> Tensor:
    """How much each pixel matters to the logit of a class: (B, H, W) on the images' device.

    images (B, C, H, W), normalised; classes (B,), None: the predicted ones. method "gradient": the largest |d logit / d
    pixel| over the channels (Simonyan et al. 2014, section 3.1); "gradient-x-input": the sum over the channels of gradient
    times input (Shrikumar et al. 2016), which has a sign. Raises AnalysisError.
    """
    if method not in METHODS:
        raise AnalysisError(f"unknown saliency {method!r}: take {' or '.join(METHODS)}")
    target = predicted(model, images) if classes is None else torch.as_tensor(classes, device=images.device).long()
    if target.shape != images.shape[:1]:
        raise AnalysisError(f"saliency of {images.shape[0]} images needs a class each, found {tuple(target.shape)}")
    leaf = images.detach().clone().requires_grad_()
    with observed(model), torch.enable_grad():
        if method == "gradient":
            found: Tensor = Saliency(model).attribute(leaf, target=target)
            return found.detach().amax(dim=1)
        return InputXGradient(model).attribute(leaf, target=target).detach().sum(dim=1)
