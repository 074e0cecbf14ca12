"""What is logged where: the `monitor` section of a run's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from algorithm.schema import Section


class MonitorConfig(Section):
    """metrics.jsonl in the run folder, and Weights & Biases when asked."""

    jsonl: bool = Field(default=True, description="the loss of every step in metrics.jsonl")
    wandb: Literal["off", "offline", "online"] = Field(
        default="off", description="off | offline (files only) | online (needs a key: WANDB_API_KEY or `wandb login`)")
    project: str = Field(default="vit-training", min_length=1, description="of Weights & Biases")

    @field_validator("wandb", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """YAML reads a bare off as false."""
        return "off" if value is False else value
