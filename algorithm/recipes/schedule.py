"""How long a training is, and its learning rate over it: timm's schedules, stepped every update."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer

from algorithm.errors import ConfigError
from algorithm.models.torchvision_shim import timm
from algorithm.recipes.config import ScheduleConfig
from algorithm.schema import one_line


@dataclass(frozen=True)
class Length:
    """In updates: of an epoch, of the schedule, of its warm-up, and of the whole training with its cool-down."""

    epoch: int
    scheduled: int
    warmup: float
    total: int

    @staticmethod
    def of(config: ScheduleConfig, epoch: int) -> Length:
        """epoch: updates that one pass over the images makes. Raises ConfigError where the warm-up takes it all."""
        scheduled = config.total_steps if config.total_steps is not None else (config.epochs or 0) * epoch
        warmup = config.warmup_steps if config.warmup_steps is not None else (config.warmup_epochs or 0) * epoch
        if warmup >= scheduled:
            raise ConfigError(f"the warm-up of {warmup:g} updates leaves nothing of a training of {scheduled}: lower "
                              "recipe.schedule.warmup_steps (warmup_epochs), or train longer")
        return Length(epoch, scheduled, warmup, scheduled + config.cooldown_epochs * epoch)


class Schedule:
    """The learning rate of an optimiser: `before(update)` sets it, `evaluated(epoch, metric)` is for plateau."""

    def __init__(self, config: ScheduleConfig, optimizer: Optimizer, length: Length) -> None:
        self.by_metric = config.sched == "plateau"
        unit = 1 if self.by_metric else length.epoch   # plateau counts epochs, the others updates
        given: dict[str, Any] = {}
        if config.decay_rate is not None:
            given["decay_rate"] = config.decay_rate
        if config.decay_epochs is not None:     # a share of the length for wsd and rsqrt, where below 1
            share = config.sched in ("wsd", "rsqrt") and config.decay_epochs < 1
            given["decay_epochs"] = config.decay_epochs * (1 if share else unit)
        elif config.sched == "step":
            given["decay_epochs"] = 90 * unit   # timm's default
        if config.decay_milestones is not None:
            given["decay_milestones"] = [m * unit for m in config.decay_milestones]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)   # timm's, of plateau: its state is saved here
                self._timm: Any = timm.scheduler.create_scheduler_v2(
                    optimizer, config.sched, num_epochs=length.scheduled, updates_per_epoch=1,
                    step_on_epochs=self.by_metric, min_lr=config.min_lr, warmup_lr=config.warmup_lr,
                    warmup_epochs=(config.warmup_epochs or 0) if self.by_metric else length.warmup,
                    cooldown_epochs=config.cooldown_epochs * length.epoch, **given)[0]
        except ValueError as error:
            raise ConfigError(f"recipe.schedule: {one_line(error, 200)}") from None
        self.optimizer = optimizer
        self.before(0)

    def before(self, update: int) -> None:
        """Set the learning rates for an update (0-based)."""
        if self._timm is not None and not self.by_metric:
            self._timm.step_update(update)

    def evaluated(self, epoch: int, metric: float) -> None:
        """After an epoch (from 1 on) with its accuracy: plateau lowers the rate where that has stopped to grow."""
        if self.by_metric:
            self._timm.step(epoch, metric)

    @property
    def lr(self) -> float:
        """The highest of the groups."""
        return max(float(g["lr"]) for g in self.optimizer.param_groups)

    def state(self) -> dict[str, Any]:
        """What does not follow from the update alone, as JSON."""
        return dict(self._timm.lr_scheduler.state_dict()) if self.by_metric else {}

    def load_state(self, state: dict[str, Any], update: int) -> None:
        """Go on before an update."""
        if self.by_metric:
            self._timm.lr_scheduler.load_state_dict(state)
        self.before(update)
