"""The shipped recipes are complete, say what the guides say, and go with an update plan, dynamic sparsity, a teacher."""

from __future__ import annotations

from pathlib import Path

import pytest

from algorithm.commands.resolving import complete, tree_of
from algorithm.config import CONFIGS
from algorithm.experiment import Experiment
from algorithm.recipes.check import check_experiment

FOLDER = CONFIGS / "training"
OVER = sorted(p.stem for p in FOLDER.glob("with_*.yaml"))
PARTS = ("strong_base_size",)           # of others, no recipe by itself
RECIPES = sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem not in (*OVER, *PARTS))


def read(*names: str) -> Experiment:
    return complete(tree_of([f"training/{name}.yaml" for name in names], {}, []))


@pytest.mark.parametrize("over", ["", *OVER])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_accepted_also_with_what_goes_over_it(recipe: str, over: str) -> None:
    found = read(*filter(None, (recipe, over)))
    check_experiment(found)
    assert (found.plan.enable_backward_config, found.recipe.dynamic.every is not None,
            found.recipe.distill.teacher is not None) == {
        "": (False, False, False), "with_plan": (True, False, False), "with_dynamic_sparsity": (True, True, False),
        "with_distillation": (False, False, True)}[over]


def test_recipe_a_is_counted_in_updates() -> None:
    recipe = read("steps").recipe
    assert (recipe.batch, recipe.batch_eval, recipe.accum_steps) == (512, 512, 1)
    assert (recipe.optim.opt, recipe.optim.momentum) == ("sgd", 0.9)
    assert (recipe.optim.base_lr, recipe.optim.lr_base_size) == (0.01, 512)
    assert (recipe.schedule.sched, recipe.schedule.total_steps, recipe.schedule.warmup_steps) == ("cosine", 10_000, 500)
    assert (recipe.eval_every, recipe.progress_every, recipe.checkpoint_every) == (100, 10, 1000)


@pytest.mark.parametrize(("name", "data", "classes"), [("strong_cifar100", "cifar100", 100),
                                                      ("strong_imagenet100", "imagenet100", 100),
                                                      ("strong_imagenet1k", "imagenet", 1000)])
def test_recipe_b_augments_strongly(name: str, data: str, classes: int) -> None:
    for size, rate in (("s16", 5e-4), ("b16", 3e-4)):
        found = read(name, *(["strong_base_size"] if size == "b16" else []))
        recipe, augment = found.recipe, found.recipe.augment
        assert (found.model.name, found.model.img_size) == (size, 224)
        assert (found.model.num_classes, found.data.name) == (classes, data)
        assert (recipe.optim.opt, recipe.optim.lr) == ("adamw", None)
        assert (recipe.optim.base_lr, recipe.optim.weight_decay) == (rate, 0.05)
        assert recipe.batch * recipe.accum_steps == recipe.optim.lr_base_size == 512 and recipe.optim.layer_decay
        assert (recipe.schedule.sched, recipe.schedule.warmup_epochs, recipe.schedule.min_lr) == ("cosine", 20, 1e-5)
        assert (augment.aa, augment.mixup, augment.cutmix, augment.smoothing) == ("rand-m9-mstd0.5-inc1", 0.8, 1.0, 0.1)
        assert (augment.reprob, augment.remode) == (0.25, "pixel") and 0.1 <= recipe.drop_path <= 0.3
        assert recipe.ema.enabled and recipe.ema.warmup and recipe.amp and recipe.accum_steps > 1


def test_recipe_c_is_deit_iii() -> None:
    recipe, augment = read("deit3").recipe, read("deit3").recipe.augment
    assert (recipe.optim.opt, recipe.optim.base_lr, recipe.optim.weight_decay) == ("lamb", 4e-3, 0.05)
    assert recipe.batch * recipe.accum_steps == recipe.optim.lr_base_size
    assert (recipe.optim.clip_grad, recipe.loss, recipe.drop_path) == (1.0, "bce", 0.05)
    assert (augment.policy, augment.color_jitter, augment.mixup_mode, augment.smoothing) == ("three", 0.3, "elem", 0.1)
    assert augment.mixup and augment.cutmix and augment.crop_pct == 1.0
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (800, 5)


def test_the_main_jobs_recipes_lie_elsewhere() -> None:
    """configs/recipes and the like are RunConfig's; what is in configs/training only `train` reads."""
    assert {p.name for p in Path(CONFIGS).iterdir() if p.is_dir()} >= {"training", "recipes", "models", "budgets"}
    assert not {p.name for p in FOLDER.glob("*.yaml")} & {p.name for p in (CONFIGS / "recipes").glob("*.yaml")}
