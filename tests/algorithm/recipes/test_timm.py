"""The engine's updates are those of a plain loop of timm's own parts, bit for bit; plans train their parts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch.nn import functional as F

from algorithm.data.loading import StepSampler, train_batches
from algorithm.data.streams import open_streams
from algorithm.data.transforms import train_transform
from algorithm.models import build_model, normalisation
from algorithm.recipes.check import SCHEDULE_OPTIONS
from algorithm.recipes.checkpoint import load_checkpoint, newest
from algorithm.recipes.mixing import seed_pass
from algorithm.recipes.names import models, optimisers, schedules
from algorithm.sparse.plan import Slice, UpdatePlan
from tests.algorithm.recipes.small import SLICED_ALL, Tree, experiment, run, tensors

UPDATES = 6
LOSSES: dict[str, Any] = {"cross-entropy": SoftTargetCrossEntropy, "bce": BinaryCrossEntropy}


@pytest.mark.parametrize(("opt", "loss", "mode"), [("adamw", "cross-entropy", "batch"), ("lamb", "bce", "elem"),
                                                   ("momentum", "cross-entropy", "pair")])
def test_updates_are_timms(opt: str, loss: str, mode: str, tmp_path: Path) -> None:
    tree: Tree = {"recipe": {
        "batch": 4, "loss": loss,
        "optim": {"opt": opt, "lr": 0.01, "weight_decay": 0.05, "layer_decay": 0.7, "clip_grad": 1.0},
        "schedule": {"epochs": None, "total_steps": UPDATES, "warmup_steps": 2, "min_lr": 1e-3},
        "augment": {"mixup": 0.8, "cutmix": 1.0, "mixup_mode": mode, "smoothing": 0.1, "aa": "rand-m9-mstd0.5-inc1"},
        "ema": {"enabled": True, "decay": 0.8, "warmup": True}}}
    run(tmp_path, tree)
    config = experiment(tree)
    model: Any = build_model(config.model)
    optimizer = create_optimizer_v2(model, opt=opt, lr=0.01, weight_decay=0.05, momentum=0.9, layer_decay=0.7)
    schedule: Any = create_scheduler_v2(optimizer, "cosine", num_epochs=UPDATES, warmup_epochs=2, warmup_lr=1e-6,
                                        min_lr=1e-3, step_on_epochs=False, updates_per_epoch=1)[0]
    mixup = Mixup(0.8, 1.0, mode=mode, label_smoothing=0.1, num_classes=3)
    ema, criterion = ModelEmaV3(model, decay=0.8, use_warmup=True), LOSSES[loss]()
    stream, _ = open_streams(config.data)
    batches = train_batches(stream, train_transform(config.recipe.augment, 16, *normalisation(model)),
                            StepSampler(len(stream), 4), last_update=UPDATES)
    model.train()
    for update, _, images, labels in batches:
        schedule.step_update(update)
        seed_pass(0, update, 0)
        mixed, targets = mixup(images, labels)
        optimizer.zero_grad()
        criterion(model(mixed), targets).backward()
        dispatch_clip_grad(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model, step=update)
    made = tensors(tmp_path)
    for name, value in model.state_dict().items():
        assert torch.equal(made[name], value), name
        assert torch.equal(made[f"ema/{name}"], ema.module.state_dict()[name]), name


@pytest.mark.parametrize("opt", ["adamw", "lamb", "momentum"])
def test_a_plan_trains_its_parts_alone_under_any_optimiser(opt: str, tmp_path: Path) -> None:
    tree: Tree = {**SLICED_ALL, "recipe": {"optim": {"opt": opt, "lr": 0.02, "weight_decay": 0.1}}}
    outcome = run(tmp_path, tree)
    made, start = tensors(tmp_path), build_model(experiment(tree).model).state_dict()
    sliced = 0
    for name, before in start.items():
        choice, changed = outcome.plan.parameters.get(name), made[name] != before
        if choice is None:
            assert not bool(changed.any()), name
        elif isinstance(choice, Slice):
            sliced += 1
            other = [i for i in range(before.shape[1]) if i not in choice.index]
            assert not bool(changed[:, other].any()) and bool(changed[:, list(choice.index)].any(0).all()), name
        else:
            assert bool(changed.any()), name
    assert sliced == 8


def test_dynamic_sparsity_chooses_as_many_columns_anew(tmp_path: Path) -> None:
    tree: Tree = {**SLICED_ALL, "recipe": {"dynamic": {"every": 2, "until": 1.0}, "optim": {"opt": "adamw", "lr": 0.01}}}
    first = run(tmp_path / "static", SLICED_ALL).plan
    outcome = run(tmp_path / "dynamic", tree)
    moved = [n for n, c in outcome.plan.parameters.items() if c != first.parameters[n]]
    assert moved and outcome.plan.parameters.keys() == first.parameters.keys()
    for name in moved:
        old, new = first.parameters[name], outcome.plan.parameters[name]
        assert isinstance(old, Slice) and isinstance(new, Slice) and len(old.index) == len(new.index)
    path = newest(tmp_path / "dynamic")
    assert path is not None and UpdatePlan.from_dict(load_checkpoint(path).plan) == outcome.plan     # what the compiler gets


def test_distillation_learns_what_the_teacher_says(tmp_path: Path) -> None:
    from safetensors.torch import save_file
    teacher = timm.create_model("test_vit", num_classes=3, img_size=16)
    with torch.no_grad():
        teacher.head.weight.zero_()
        teacher.head.bias.copy_(torch.tensor([8.0, 0.0, 0.0]))      # it says the first class of everything
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    for kind in ("soft", "hard"):
        tree: Tree = {"recipe": {"distill": {"teacher": "test_vit", "weights": str(tmp_path / "teacher.safetensors"),
                                             "alpha": 1.0, "kind": kind}, "optim": {"opt": "adamw", "lr": 0.02}}}
        assert run(tmp_path / kind, tree).evaluation.confusion[:, 0].sum() == 15, kind


def test_the_loss_of_distillation_is_the_papers() -> None:
    from algorithm.recipes.config import DistillConfig
    from algorithm.recipes.distill import Teacher
    student, theirs, labels = torch.randn(5, 3), torch.randn(5, 3), torch.tensor(0.7)
    teacher = object.__new__(Teacher)
    teacher.config = DistillConfig(teacher="test_vit", alpha=0.3, tau=2.0)
    p = F.softmax(theirs / 2, -1)
    kl = (p * (p.log() - F.log_softmax(student / 2, -1))).sum(-1).mean() * 4
    torch.testing.assert_close(teacher.loss(labels, student, theirs), 0.7 * labels + 0.3 * kl)


def test_names_are_timms() -> None:
    assert set(optimisers()) == set(list_optimizers())
    assert set(schedules()) == set(SCHEDULE_OPTIONS) | (set(schedules()) & {"none"})
    assert set(timm.list_models()) <= set(models())
