"""An experiment: the configuration of `python -m algorithm train`. Sections it shares with the main job mean the same."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from algorithm.data.config import DataConfig
from algorithm.models.config import GramConfig, ModelConfig
from algorithm.monitor.config import MonitorConfig
from algorithm.recipes.config import RecipeConfig
from algorithm.schema import Section, without_aliases
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
    """Everything a training by recipe needs; saved resolved into its work folder.

    Unlike the main job it begins, unless asked otherwise, with timm's plain model from random weights and all images.
    """

    model: ModelConfig = ModelConfig(weights="none", head_init="timm", gram=GramConfig(enabled=False))
    data: DataConfig = DataConfig(images_per_class=None, test_images=None)
    plan: PlanConfig = PlanConfig(enable_backward_config=False)
    recipe: RecipeConfig = RecipeConfig()
    monitor: MonitorConfig = MonitorConfig()
    output: WorkConfig = WorkConfig()

    @model_validator(mode="before")
    @classmethod
    def _over_its_own_defaults(cls, raw: Any) -> Any:
        """A model or data set given as a mapping lies over the defaults above, not over those of the main job."""
        if not isinstance(raw, dict):
            return raw
        raw = without_aliases(raw, cls)
        defaults = {name: cls.model_fields[name].default.model_dump(exclude_unset=True) for name in ("model", "data")}
        return {**raw, **{n: {**d, **raw[n]} for n, d in defaults.items() if isinstance(raw.get(n), dict)}}
