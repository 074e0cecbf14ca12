"""What is logged where: the `monitor` section of a run's configuration."""

from __future__ import annotations

from typing import Literal

from algorithm.schema import Section


class MonitorConfig(Section):
    """metrics.jsonl in the run folder, and Weights & Biases when asked."""

    jsonl: bool = True
    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "vit-training"
