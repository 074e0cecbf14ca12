"""Whole recipes, with accumulation, and learning rates over epochs, against timm's own: the same bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm.data
import timm.loss
import timm.optim
import timm.scheduler
import timm.utils
import torch
from torch import nn

from algorithm.data.loading import StepSampler, train_batches
from algorithm.data.streams import open_streams
from algorithm.data.transforms import train_transform
from algorithm.errors import ConfigError
from algorithm.models import build_model, normalisation
from algorithm.recipes.config import ScheduleConfig
from algorithm.recipes.mixing import seed_pass
from algorithm.recipes.schedule import Length, Schedule
from tests.algorithm.recipes.forks import differing, experiment, trained, weights

EPOCHS, EPOCH = 3, 4        # 32 images, 2 passes of 4 images an update
STRONG: dict[str, Any] = {
    "optim": {"opt": "adamw", "lr": 0.01, "weight_decay": 0.05, "layer_decay": 0.7, "opt_betas": [0.9, 0.99]},
    "schedule": {"sched": "cosine", "epochs": EPOCHS, "warmup_epochs": 1, "min_lr": 1e-5, "warmup_lr": 1e-4},
    "augment": {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1}, "ema": {"enabled": True, "decay": 0.9, "warmup": True}}
DEIT3: dict[str, Any] = {
    "optim": {"opt": "lamb", "lr": 4e-3, "weight_decay": 0.05, "clip_grad": 0.5},
    "schedule": {"sched": "cosine", "epochs": EPOCHS, "warmup_epochs": 1, "warmup_lr": 1e-4}, "loss": "bce",
    "augment": {"mixup": 0.8, "cutmix": 1.0, "mixup_mode": "elem", "smoothing": 0.1, "policy": "three", "color_jitter": 0.3},
    "ema": {"enabled": True, "decay": 0.9}}
STEPS: dict[str, Any] = {
    "optim": {"opt": "momentum", "lr": 0.05, "momentum": 0.9, "clip_grad": 0.01, "clip_mode": "agc"},
    "schedule": {"sched": "step", "epochs": EPOCHS, "decay_epochs": 2, "decay_rate": 0.1}, "augment": {"smoothing": 0.1}}


def by_hand(recipe: dict[str, Any]) -> tuple[nn.Module, nn.Module | None]:
    """The model and its average, as a script on timm would train them."""
    order = experiment({"recipe": {"schedule": {"total_steps": None, "warmup_steps": None}}}, {
        "recipe": {**recipe, "accum_steps": 2}})
    optim, schedule, augment = (recipe.get(k, {}) for k in ("optim", "schedule", "augment"))
    model: Any = build_model(order.model, drop_path=0.1)
    betas = {"betas": tuple(optim["opt_betas"])} if "opt_betas" in optim else {}
    optimizer = timm.optim.create_optimizer_v2(
        model, optim["opt"], lr=optim["lr"], weight_decay=optim.get("weight_decay", 0.0),
        momentum=optim.get("momentum", 0.9), layer_decay=optim.get("layer_decay"), **betas)
    scheduler, _ = timm.scheduler.create_scheduler_v2(
        optimizer, schedule["sched"], num_epochs=EPOCHS, decay_epochs=schedule.get("decay_epochs", 90),
        decay_rate=schedule.get("decay_rate", 0.1), min_lr=schedule.get("min_lr", 0.0),
        warmup_epochs=schedule.get("warmup_epochs", 0), warmup_lr=schedule.get("warmup_lr", 1e-6), step_on_epochs=False,
        updates_per_epoch=EPOCH)
    mixes = "mixup" in augment
    mixup = timm.data.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, mode=augment.get("mixup_mode", "batch"), label_smoothing=0.1,
                            num_classes=4)
    criterion: nn.Module = timm.loss.LabelSmoothingCrossEntropy(0.1)
    if mixes:
        criterion = timm.loss.BinaryCrossEntropy(smoothing=0.1) if recipe.get("loss") == "bce" else \
            timm.loss.SoftTargetCrossEntropy()
    ema = timm.utils.ModelEmaV3(model, decay=0.9, use_warmup=recipe["ema"].get("warmup", False)) if "ema" in recipe else None
    stream, _ = open_streams(order.data)
    sampler = StepSampler(len(stream), batch=4, accum=2, seed=0)
    assert sampler.updates == EPOCH
    transform = train_transform(order.recipe.augment, 16, *normalisation(model))
    batches = train_batches(stream, transform, sampler, last_update=EPOCHS * EPOCH)
    model.train()
    scheduler.step_update(0)
    for update in range(EPOCHS * EPOCH):
        scheduler.step_update(update)
        optimizer.zero_grad()
        for k in range(2):
            _, _, images, labels = next(batches)
            seed_pass(0, update, k)
            images, targets = mixup(images, labels) if mixes else (images, labels)
            (criterion(model(images), targets) / 2).backward()
        if "clip_grad" in optim:
            timm.utils.dispatch_clip_grad(model.parameters(), optim["clip_grad"], optim.get("clip_mode", "norm"))
        optimizer.step()
        if ema is not None:
            ema.update(model, step=update)
    return model, None if ema is None else ema.module


@pytest.mark.parametrize("recipe", [STRONG, DEIT3, STEPS], ids=["strong", "deit3", "steps"])
def test_a_training_is_timms(recipe: dict[str, Any], tmp_path: Path) -> None:
    trained(tmp_path, {"recipe": {"schedule": {"total_steps": None, "warmup_steps": None}}},
            {"recipe": {**recipe, "accum_steps": 2}})
    model, average = by_hand(recipe)
    assert differing(weights(tmp_path), dict(model.state_dict())) == []
    if average is not None:
        assert differing(weights(tmp_path, "ema/"), dict(average.state_dict())) == []
        assert len(differing(weights(tmp_path, "ema/"), weights(tmp_path))) > 10
    assert len(differing(weights(tmp_path), dict(build_model(experiment().model).state_dict()))) > 10


@pytest.mark.parametrize("options", [
    {"sched": "cosine", "min_lr": 1e-5, "warmup_epochs": 2}, {"sched": "cosine", "cooldown_epochs": 2},
    {"sched": "tanh", "min_lr": 1e-4}, {"sched": "poly", "decay_rate": 0.5, "warmup_epochs": 1},
    {"sched": "step", "decay_epochs": 3, "decay_rate": 0.2}, {"sched": "multistep", "decay_milestones": [2, 5],
                                                              "decay_rate": 0.3}],
    ids=lambda o: "-".join(map(str, o.values())))
def test_the_learning_rate_is_timms_at_every_update(options: dict[str, Any]) -> None:
    def optimizer() -> torch.optim.Optimizer:
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)

    epochs, epoch = 7, 5
    mine = Schedule(ScheduleConfig(epochs=epochs, **options), first := optimizer(),
                    length := Length.of(ScheduleConfig(epochs=epochs, **options), epoch))
    theirs: Any = timm.scheduler.create_scheduler_v2(second := optimizer(), num_epochs=epochs, step_on_epochs=False,
                                                     updates_per_epoch=epoch, warmup_lr=1e-6, **options)[0]
    assert length.total == (epochs + options.get("cooldown_epochs", 0)) * epoch
    rates = []
    for update in range(length.total):
        mine.before(update)
        theirs.step_update(update)
        rates.append(first.param_groups[0]["lr"])
        assert rates[-1] == second.param_groups[0]["lr"], update
    assert len(set(rates)) > 2


def test_layer_decay_groups_are_timms() -> None:
    from algorithm.recipes.config import OptimConfig
    from algorithm.recipes.optim import make_optimizer
    model = build_model(experiment().model)
    mine = make_optimizer(model, OptimConfig(opt="adamw", lr=0.1, weight_decay=0.05, layer_decay=0.6), 8, {})
    other = copy.deepcopy(model)
    theirs = timm.optim.create_optimizer_v2(other, "adamw", lr=0.1, weight_decay=0.05, layer_decay=0.6)
    names = [{id(p): n for n, p in m.named_parameters()} for m in (model, other)]
    groups = [[(g["lr_scale"], g["weight_decay"], [known[id(p)] for p in g["params"]]) for g in o.param_groups]
              for known, o in zip(names, (mine, theirs), strict=True)]
    assert groups[0] == groups[1] and len({scale for scale, _, _ in groups[0]}) == 4    # embedding, two blocks, head


@pytest.mark.parametrize(("opt", "words"), [("sgd", "opt_betas"), ("lion", "opt_eps")])
def test_arguments_that_an_optimiser_does_not_have_are_refused(opt: str, words: str) -> None:
    from algorithm.recipes.config import OptimConfig
    from algorithm.recipes.optim import make_optimizer
    value = [0.9, 0.99] if words == "opt_betas" else 1e-8
    with pytest.raises(ConfigError, match=f"recipe.optim.{words} has no effect: {opt} has none"):
        make_optimizer(build_model(experiment().model), OptimConfig(opt=opt, lr=0.1, **{words: value}), 8, {})
