"""What of a recipe can be refused before PyTorch is loaded: unknown names, options that would have no effect."""

from __future__ import annotations

from algorithm.errors import ConfigError
from algorithm.experiment import Experiment
from algorithm.models.sources import SOURCES, check_source
from algorithm.recipes.config import AugmentConfig, OptimConfig, RecipeConfig, ScheduleConfig
from algorithm.recipes.names import check_optimiser, check_schedule, check_teacher
from algorithm.schema import Section

# what each schedule reads, beside the warm-up that all but "none" have
SCHEDULE_OPTIONS: dict[str, tuple[str, ...]] = {
    "cosine": ("min_lr", "cooldown_epochs"), "tanh": ("min_lr", "cooldown_epochs"),
    "poly": ("min_lr", "cooldown_epochs", "decay_rate"), "step": ("decay_epochs", "decay_rate"),
    "multistep": ("decay_milestones", "decay_rate"), "plateau": ("decay_rate", "min_lr"),
    "wsd": ("min_lr", "decay_epochs"), "rsqrt": ("min_lr", "decay_epochs"), "constant": (), "none": ()}
_OF_SOME = ("min_lr", "cooldown_epochs", "decay_epochs", "decay_milestones", "decay_rate")
WARMUP = ("warmup_epochs", "warmup_steps")
MIXING = ("mixup_prob", "mixup_mode")


def check_recipe(recipe: RecipeConfig) -> None:
    """Raise ConfigError, one line, for a name that timm does not have and for an option without effect."""
    check_optimiser(recipe.optim.opt)
    check_schedule(recipe.schedule.sched)
    if recipe.distill.teacher is not None:
        check_teacher(recipe.distill.teacher)
        if recipe.distill.weights == "none":
            raise ConfigError("recipe.distill.weights=none: an untrained teacher teaches nothing: give timm, or a file")
        if recipe.distill.weights not in SOURCES:
            check_source(recipe.distill.weights, recipe.distill.teacher)
    _optim(recipe.optim)
    _schedule(recipe.schedule)
    _mixing(recipe.augment, recipe.batch)
    if not recipe.ema.enabled:
        _vain(recipe.ema, "recipe.ema", ("decay", "warmup"), "without a moving average: set recipe.ema.enabled=true")
        _vain(recipe, "recipe", ("eval_ema",), "without a moving average: set recipe.ema.enabled=true")
    if recipe.distill.teacher is None:
        _vain(recipe.distill, "recipe.distill", ("weights", "img_size", "kind", "alpha", "tau"),
              "without a teacher: set recipe.distill.teacher")
    elif recipe.distill.kind == "hard":
        _vain(recipe.distill, "recipe.distill", ("tau",), "on hard distillation: set recipe.distill.kind=soft")
    if recipe.dynamic.every is None:
        _vain(recipe.dynamic, "recipe.dynamic", ("criterion", "until"), "without recipe.dynamic.every")
    if recipe.checkpoint_every is not None:
        _vain(recipe, "recipe", ("save_freq",), "beside recipe.checkpoint_every")
    if not recipe.amp:
        _vain(recipe, "recipe", ("amp_dtype",), "without recipe.amp=true")


def check_experiment(experiment: Experiment) -> None:
    """`check_recipe`, and what only the sections together show. Raises ConfigError."""
    check_recipe(experiment.recipe)
    if experiment.recipe.dynamic.every is not None and not experiment.plan.enable_backward_config \
            and not experiment.plan.parameters:
        raise ConfigError("recipe.dynamic.every chooses the trained columns anew, but the plan trains everything whole: set "
                          "plan.enable_backward_config=true and plan.weight_update_ratio below 1")
    if experiment.plan.gram_rank is not None:
        raise ConfigError("plan.gram_rank is for the main job's search over ranks: here set model.gram.rank")
    if experiment.output.resume is not None and experiment.output.fresh:
        raise ConfigError("output.resume goes on, output.fresh starts again: leave one out")


def _vain(section: Section, prefix: str, names: tuple[str, ...], why: str) -> None:
    vain = section.changed(*names)
    if vain:
        raise ConfigError(f"{prefix}.{vain[0]} has no effect {why}, or leave it out")


def _optim(optim: OptimConfig) -> None:
    if optim.lr is not None:
        _vain(optim, "recipe.optim", ("base_lr", "lr_base_size", "lr_base_scale"), "beside recipe.optim.lr: leave that out")
    if optim.clip_grad is None:
        _vain(optim, "recipe.optim", ("clip_mode",), "without recipe.optim.clip_grad")


def _schedule(schedule: ScheduleConfig) -> None:
    name = schedule.sched
    if schedule.epochs is None and schedule.total_steps is None:
        raise ConfigError("nothing says how long to train: set recipe.schedule.epochs (--epochs) or "
                          "recipe.schedule.total_steps")
    known = SCHEDULE_OPTIONS[name]
    _vain(schedule, "recipe.schedule", tuple(n for n in _OF_SOME if n not in known), f"on the schedule {name}")
    if name == "none":
        _vain(schedule, "recipe.schedule", (*WARMUP, "warmup_lr"), "on the schedule none: take constant")
    elif not any(getattr(schedule, n) for n in WARMUP):
        _vain(schedule, "recipe.schedule", ("warmup_lr",), "without a warm-up")
    if name == "multistep" and not schedule.decay_milestones:
        raise ConfigError("the schedule multistep needs recipe.schedule.decay_milestones")
    if name == "plateau" and (schedule.epochs is None or schedule.warmup_steps):
        raise ConfigError("the schedule plateau follows the evaluation of each epoch: give recipe.schedule.epochs and "
                          "warmup_epochs, not updates")


def _mixing(augment: AugmentConfig, batch: int) -> None:
    if not augment.mixup and not augment.cutmix:
        _vain(augment, "recipe.augment", MIXING, "without mixup or cutmix")
    if not (augment.mixup and augment.cutmix):
        _vain(augment, "recipe.augment", ("mixup_switch_prob",), "without both mixup and cutmix")
    if (augment.mixup or augment.cutmix) and batch % 2:
        raise ConfigError(f"Mixup and CutMix mix pairs, so recipe.batch must be even, found {batch}")
