"""How to train: the `train` section of a run's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from algorithm.schema import SEED_MAX, Section


class TrainConfig(Section):
    """Batch-1 SGD in float32, as the device does it: no weight decay, no dropout, one image a step, in order."""

    lr: float = Field(default=0.004, gt=0, description="learning rate")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="how the learning rate falls from lr to min_lr over the passes; it is an argument "
        "of the device's step, so it costs nothing there")
    warmup: float = Field(default=0.0, ge=0, lt=1, description="share of the steps in which it first rises to lr, evenly")
    min_lr: float = Field(default=0.0, ge=0, description="where linear and cosine end")
    augment: Literal["off", "shift", "flip", "both"] = Field(
        default="shift", description="shifts and left-to-right flips of the uint8 image, new in each pass after the "
        "first (on the device: vt_augment.h); flips are not for letters, digits and what else has a left and a right")
    shift: float = Field(default=0.0625, gt=0, lt=1, description="largest shift, as a share of the image's side")
    variants: int | None = Field(default=None, ge=2, description="passes take turns through so many variants of an image, so"
                                 " that what the frozen blocks make of them is computed once; null = each pass has its own")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of SGD; doubles the RAM of trained weights when not 0")
    epochs: int = Field(default=6, ge=1, le=100_000, description="passes over the training images")
    steps: int | None = Field(default=None, ge=1, description="stop after so many steps, within the passes; null = all")
    seed: int = Field(default=0, ge=0, le=SEED_MAX, description="of the order of the images from the second pass on")
    eval_batch: int = Field(default=16, ge=1, le=100_000, description="images at once when evaluating")
    checkpoint_every: int = Field(default=200, ge=1, description="steps between training checkpoints")
    threads: int | None = Field(default=1, ge=1, le=1024, description="of PyTorch in the training steps (batch-1 steps gain "
                                "little from more); evaluation takes a batch a core; null = PyTorch's choice")
    trace_steps: int = Field(default=20, ge=1, description="steps that the C is compared over, at most one a training image")

    trace: str | None = Field(default=None, description="a recorded run that the C is held against, instead of one recorded "
                              "here (trace.safetensors, from python -m algorithm train --record_trace N, perhaps on a GPU)")

    @field_validator("augment", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """YAML reads a bare off as false."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _used(self) -> TrainConfig:
        if self.trace is not None and self.changed("trace_steps"):
            raise ValueError("trace_steps has no effect beside trace, which has its own number: leave one out")
        if self.schedule == "constant" and self.min_lr:
            raise ValueError("min_lr has no effect on a constant learning rate: set schedule to linear or cosine, or leave "
                             "min_lr out")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr={self.min_lr:g} is above lr={self.lr:g}: lower it")
        if self.augment in ("off", "flip") and (vain := self.changed("shift", *(["variants"] * (self.augment == "off")))):
            raise ValueError(f"{vain[0]} is given, but augment={self.augment} has no use for it: set augment=shift or both, "
                             f"or leave {vain[0]} out")
        return self
