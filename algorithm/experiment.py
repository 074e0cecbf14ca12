"""An experiment: the configuration of `python -m algorithm train`. Sections it shares with the main job mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from algorithm.continuing import flat
from algorithm.data.config import DataConfig
from algorithm.models.config import GramConfig, ModelConfig
from algorithm.monitor.config import MonitorConfig
from algorithm.recipes.config import RecipeConfig
from algorithm.schema import Section, without_aliases
from algorithm.sparse.config import PlanConfig

# what no update depends on: a training goes on when it changes
FREE = ("monitor", "output", "recipe.workers", "recipe.prefetch", "recipe.pin_memory", "recipe.batch_eval",
        "recipe.eval_every", "recipe.eval_ema", "recipe.progress_every", "recipe.checkpoint_every", "recipe.save_freq",
        "recipe.keep", "recipe.threads", "recipe.device", "data.max_broken")


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


def settings_of(experiment: Experiment) -> dict[str, Any]:
    """What makes two trainings the same: all but the orders to go on or to start again."""
    return experiment.model_dump(mode="json", exclude={"output": {"fresh", "resume"}})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """In what a training under the settings `old` does not go on under `new`: "recipe.batch: 8 there, 16 here"; "" = it
    does."""
    before, now = flat(old), flat(new)
    changed = [k for k in {**before, **now} if before.get(k) != now.get(k)
               and not any(k == f or k.startswith(f + ".") for f in FREE)]
    told = ", ".join(f"{k}: {before.get(k)} there, {now.get(k)} here" for k in changed[:3])
    return f"{told} and {len(changed) - 3} more" if len(changed) > 3 else told
