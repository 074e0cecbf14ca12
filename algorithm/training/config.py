"""How to train: the `train` section of a run's configuration."""

from __future__ import annotations

from pydantic import Field

from algorithm.schema import Section


class TrainConfig(Section):
    """Batch-1 SGD in float32, as the device does it: no weight decay, no dropout, one image a step, in order."""

    lr: float = Field(default=0.001, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    epochs: int = Field(default=3, ge=1, description="passes over the training images")
    steps: int | None = Field(default=None, ge=1, description="stop after so many steps; None = all passes")
    seed: int = Field(default=0, description="order of the images")
    eval_batch: int = Field(default=16, ge=1)
    checkpoint_every: int = Field(default=200, ge=1, description="steps between training checkpoints")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of PyTorch; None = its own choice")
    trace_steps: int = Field(default=20, ge=1, description="steps of the recorded trace")
