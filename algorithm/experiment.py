"""An experiment: the configuration of `python -m algorithm train`. Sections it shares with the main job mean the same."""

from __future__ import annotations

from pydantic import Field

from algorithm.data.config import DataConfig
from algorithm.models.config import ModelConfig
from algorithm.monitor.config import MonitorConfig
from algorithm.recipes.config import RecipeConfig
from algorithm.schema import Section
from algorithm.sparse.config import PlanConfig


class WorkConfig(Section):
    """Where the checkpoints, metrics and pictures go: `dir`/`name`. The same command goes on with the newest there."""

    dir: str = Field(default="work", min_length=1, description="folder of the work folders")
    name: str | None = Field(default=None, min_length=1, description="null = made from model, data and recipe")
    resume: str | None = Field(default=None, description="a checkpoint to go on from; null = the newest of the work folder")
    fresh: bool = Field(default=False, description="start again, and replace the work of this name")
    record_trace: int | None = Field(default=None, ge=1, description="after the training, record so many of the device's "
                                     "steps for `python -m runtime` to be validated against")


class Experiment(Section):
    """Everything a training by recipe needs; saved resolved into its work folder."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    plan: PlanConfig = PlanConfig(enable_backward_config=False)
    recipe: RecipeConfig = RecipeConfig()
    monitor: MonitorConfig = MonitorConfig()
    output: WorkConfig = WorkConfig()
