"""How to train: the `train` section of a run's configuration."""

from __future__ import annotations

from pydantic import Field

from algorithm.schema import SEED_MAX, Section


class TrainConfig(Section):
    """Batch-1 SGD in float32, as the device does it: no weight decay, no dropout, one image a step, in order."""

    lr: float = Field(default=0.001, gt=0, description="learning rate")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="of SGD; doubles the RAM of trained weights when not 0")
    epochs: int = Field(default=2, ge=1, le=100_000, description="passes over the training images")
    steps: int | None = Field(default=None, ge=1, description="stop after so many steps, within the passes; null = all")
    seed: int = Field(default=0, ge=0, le=SEED_MAX, description="of the order of the images from the second pass on")
    eval_batch: int = Field(default=16, ge=1, le=100_000, description="images at once when evaluating")
    checkpoint_every: int = Field(default=200, ge=1, description="steps between training checkpoints")
    threads: int | None = Field(default=1, ge=1, le=1024, description="of PyTorch in the training steps (batch-1 steps gain "
                                "little from more); evaluation takes a batch a core; null = PyTorch's choice")
    trace_steps: int = Field(default=20, ge=1, description="steps that the C is compared over, at most one a training image")
