"""What is logged where: the `monitor` section of a run's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from algorithm.schema import Section


class MonitorConfig(Section):
    """metrics.jsonl in the run folder, and Weights & Biases when asked."""

    jsonl: bool = True
    wandb: Literal["off", "offline", "online"] = "off"
    project: str = "vit-training"

    @field_validator("wandb", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """YAML reads a bare off as false."""
        return "off" if value is False else value
