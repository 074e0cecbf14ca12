"""Update plans under any optimiser, and their columns chosen anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor, nn

from algorithm.data.loading import StepSampler, train_batches
from algorithm.data.streams import open_streams
from algorithm.data.transforms import train_transform
from algorithm.errors import ConfigError
from algorithm.experiment import Experiment
from algorithm.models import build_model, normalisation
from algorithm.recipes.checkpoint import load_checkpoint
from algorithm.sparse.plan import Slice, UpdatePlan
from tests.algorithm.recipes.forks import SLICED, differing, experiment, trained, weights

EMA: dict[str, Any] = {"recipe": {"ema": {"enabled": True, "decay": 0.9}}}
STILL: dict[str, Any] = {"recipe": {"drop_path": 0.0,
                                    "schedule": {"total_steps": 10, "warmup_steps": 0, "sched": "constant"}}}


def optimiser(opt: str) -> dict[str, Any]:
    return {"recipe": {"optim": {"opt": opt, "lr": 0.01, "weight_decay": 0.1}}}


def in_plan(plan: UpdatePlan, name: str, like: Tensor) -> Tensor:
    """Which entries of a parameter the plan trains: booleans."""
    mask = torch.zeros_like(like, dtype=torch.bool)
    choice = plan.parameters.get(name)
    if isinstance(choice, Slice):
        mask.index_fill_(1 if choice.axis == "cols" else 0, torch.tensor(choice.index), True)
    elif choice == "all":
        mask.fill_(True)
    return mask


@pytest.mark.parametrize("opt", ["lion", "muon", "lookahead_adamw"])
def test_what_the_plan_leaves_out_keeps_its_bits_and_the_rest_does_not(opt: str, tmp_path: Path) -> None:
    outcome = trained(tmp_path, optimiser(opt), SLICED, EMA)
    start, end = dict(build_model(experiment(SLICED).model).state_dict()), weights(tmp_path)
    sliced = 0
    for prefix in ("", "ema/"):
        for name, value in weights(tmp_path, prefix).items():
            mask = in_plan(outcome.plan, name, value)
            assert torch.equal(value[~mask], start[name][~mask]), name
            if mask.any():
                assert not torch.equal(value[mask], start[name][mask]), name
            sliced += int(mask.any() and not mask.all())
    assert sliced == 2 * 4 and start.keys() == end.keys()   # qkv and proj of two blocks


def test_the_plans_rows_too(tmp_path: Path) -> None:
    rows = {"plan": {"weight_select_axis": "rows"}}
    outcome = trained(tmp_path, optimiser("adamw"), SLICED, rows)
    start = dict(build_model(experiment().model).state_dict())
    name, end = "blocks.0.attn.qkv.weight", weights(tmp_path)
    choice = outcome.plan.parameters[name]
    assert isinstance(choice, Slice) and choice.axis == "rows" and len(choice.index) == 12
    assert (end[name] != start[name]).any(1).nonzero().flatten().tolist() == list(choice.index)


def micro_batches(order: Experiment, model: nn.Module, updates: int) -> Any:
    stream, _ = open_streams(order.data)
    sampler = StepSampler(len(stream), order.recipe.batch, seed=order.recipe.seed)
    transform = train_transform(order.recipe.augment, order.model.img_size, *normalisation(model))
    return train_batches(stream, transform, sampler, last_update=updates)


def test_a_slice_under_adamw_is_the_whole_matrix_with_a_masked_step(tmp_path: Path) -> None:
    """Every parameter gets its whole gradient and AdamW's step, and what is not in the plan is put back."""
    changes = (optimiser("adamw"), SLICED, STILL)
    outcome, order = trained(tmp_path, *changes), experiment(*changes)
    model = build_model(order.model)
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", lr=0.01, weight_decay=0.1)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.train()
    for _, _, images, labels in micro_batches(order, model, 10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.where(in_plan(outcome.plan, name, parameter), parameter, start[name]))
    end = weights(tmp_path)
    model.requires_grad_(False)
    assert max(float((p - end[n]).abs().max()) for n, p in model.named_parameters()) <= 1e-5
    assert max(float((p - start[n]).abs().max()) for n, p in model.named_parameters()) > 1e-2


def dynamic(criterion: str, every: int = 1, until: float = 0.1) -> dict[str, Any]:
    """`until` 0.1 of 10 updates: one choice, on the first update."""
    return {"recipe": {"dynamic": {"every": every, "criterion": criterion, "until": until}}}


@pytest.mark.parametrize("criterion", ["gradient", "magnitude+", "magnitude-"])
def test_the_columns_that_the_criterion_wants_are_chosen(criterion: str, tmp_path: Path) -> None:
    changes = (SLICED, STILL, dynamic(criterion), {"recipe": {"checkpoint_every": 1, "keep": 20}})
    before = experiment(*changes)
    model = build_model(before.model)
    plan = trained(tmp_path, *changes).plan
    first = load_checkpoint(tmp_path / "checkpoints/step-00000001.safetensors")
    assert UpdatePlan.from_dict(first.plan).parameters == plan.parameters       # chosen once, and it stays
    if criterion == "gradient":
        _, _, images, labels = next(micro_batches(before, model, 1))
        nn.functional.cross_entropy(model(images), labels).backward()
    static = trained(tmp_path / "static", SLICED, STILL).plan
    changed = 0
    for name, choice in plan.parameters.items():
        if not isinstance(choice, Slice):
            continue
        of = model.get_parameter(name).grad if criterion == "gradient" else first.weights()[name]
        assert of is not None
        order = of.double().norm(dim=0).argsort(descending=criterion != "magnitude-")
        assert set(choice.index) == set(order[:len(choice.index)].tolist()), name
        other = static.parameters[name]
        assert isinstance(other, Slice) and len(other.index) == len(choice.index)
        changed += len(set(choice.index) - set(other.index))
    assert changed > 0 or criterion == "magnitude+"     # which the static plan chose by, too


def test_what_was_never_chosen_keeps_its_bits_and_what_was_keeps_what_it_learnt(tmp_path: Path) -> None:
    outcome = trained(tmp_path, optimiser("adamw"), SLICED, dynamic("random", every=2, until=0.5),
                      {"recipe": {"checkpoint_every": 1, "keep": 20}})
    saved = [load_checkpoint(tmp_path / f"checkpoints/step-{n:08d}.safetensors") for n in range(1, 11)]
    plans = [UpdatePlan.from_dict(c.plan) for c in saved]
    assert len({str(p.parameters) for p in plans}) == 3 and plans[-1].parameters == outcome.plan.parameters
    name = "blocks.1.attn.proj.weight"
    for earlier, plan, later in zip(saved, plans, saved[1:], strict=False):
        # the plan that a checkpoint holds is the one of the update after it
        mask = in_plan(plan, name, earlier.weights()[name])
        moved = later.weights()[name] != earlier.weights()[name]
        assert not moved[~mask].any() and moved[mask].any()


def test_an_optimiser_that_cannot_follow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lookahead_adamw cannot follow recipe\.dynamic"):
        trained(tmp_path, optimiser("lookahead_adamw"), SLICED, dynamic("random"))
    with pytest.raises(ConfigError, match="the plan trains everything whole"):
        trained(tmp_path, dynamic("random"))
    assert not (tmp_path / "checkpoints").exists()


def test_seeds_choose_other_columns(tmp_path: Path) -> None:
    one, two, same = (trained(tmp_path / n, SLICED, dynamic("random"), {"recipe": {"seed": seed}}).plan
                      for n, seed in (("a", 0), ("b", 1), ("c", 0)))
    assert one.parameters != two.parameters and one.parameters == same.parameters
    assert differing(weights(tmp_path / "a"), weights(tmp_path / "c")) == []
