"""A Watch changes nothing: weights, average, optimiser, random states, modes, hooks; whatever is trained and however."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from algorithm.monitor import Watch, gram_norms, read_metrics
from algorithm.sparse import UpdatePlan
from algorithm.sparse.plan import Slice
from tests.algorithm.monitor.loop import LR, SAMPLES, Run, start, train, watcher

PLAN = UpdatePlan({"blocks.0.attn.qkv.weight": Slice("cols", (1, 5, 6)), "blocks.1.mlp.fc1.weight": Slice("rows", (0, 9)),
                   "blocks.1.attn.gram_a": "all", "blocks.1.attn.gram_b": "all", "head.weight": "all", "head.bias": "all"})


def states(run: Run) -> dict[str, Any]:
    """All that a Watch could have touched."""
    momentum = [v for s in run.optimizer.state.values() for v in s.values()]
    return {"weights": list(run.model.state_dict().values()), "average": list(run.ema.state_dict().values()),
            "momentum": momentum, "torch": [torch.get_rng_state()], "modes": [m.training for m in run.model.modules()],
            "python": random.getstate(), "numpy": str(np.random.get_state())}  # noqa: NPY002


def trained(watch: Callable[..., Watch] | None, plan: UpdatePlan | None, compiled: bool = False) -> dict[str, Any]:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    run, applied = start(None, plan)
    forward = torch.compile(run.model, backend="eager") if compiled else run.model
    if watch:
        run.watch = watch(forward, run.ema.module)
    with applied if plan else nullcontext():
        with run.watch.monitor if run.watch else nullcontext():
            train(run, forward=forward, sync=applied.sync if plan else lambda: None)
        if run.watch:
            run.watch.close()
            assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in run.model.modules())
        return states(run)


@pytest.mark.parametrize(("plan", "compiled"), [(None, False), (PLAN, False), (None, True)],
                         ids=["all", "slices", "compiled"])
def test_the_training_is_the_same_bit_for_bit(plan: UpdatePlan | None, compiled: bool, tmp_path: Path) -> None:
    without = trained(None, plan, compiled)
    looks = {"analysis_freq": 2, **({"vis_freq": None, "vis_images": 4} if plan else {"vis_freq": 2})}
    with_it = trained(lambda model, ema: watcher(tmp_path, model, ema, **looks), plan, compiled)
    assert without.keys() == with_it.keys()
    for what, values in without.items():
        if isinstance(values, list) and isinstance(values[0], torch.Tensor):
            assert len(values) == len(with_it[what]) and all(map(torch.equal, values, with_it[what])), what
        else:
            assert values == with_it[what], what
    found = read_metrics(tmp_path)
    assert {"Optim/grad_global_norm", "Activations/block_1/mlp_out_std", "GramLowRank/block_1/T_norm",
            "spec_ema/blocks.0.attn.qkv/cos_u1", "cls_to_patch_grid"} <= found.keys()
    if plan:
        assert {n for n in found if n.startswith("Updates/")} == {
            "Updates/blocks.0.attn.qkv.weight", "Updates/head.weight"}
        assert not any("plan_part" in n for n in found)
    if compiled:  # hooks see no compiled forward: there the values are of the fixed samples, as after the update
        torch.testing.assert_close(found["GramLowRank/block_1/Z_norm"][0][1], _first_norms(), rtol=1e-5, atol=0)


def _first_norms() -> float:
    run, _ = start()
    train(run, range(1))
    return gram_norms(run.model, SAMPLES)[1]["Z_norm"]


@pytest.mark.parametrize("plan", [None, PLAN], ids=["all", "slices"])
def test_the_norms_are_those_of_the_update(plan: UpdatePlan | None, tmp_path: Path) -> None:
    """The first update of SGD is minus the rate times the gradient; what is not trained does not count."""
    run, applied = start(lambda model, ema: watcher(tmp_path, model, ema), plan)
    names = set(plan.parameters) if plan else {n for n, _ in run.model.named_parameters()}
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    assert run.watch
    with run.watch.monitor, run.watch, applied:
        train(run, range(1), sync=applied.sync if plan else lambda: None)
        after = {n: p.detach() for n, p in run.model.named_parameters() if n in names}
        moved = _norm([after[n] - before[n] for n in names])
        values = _norm([_chosen(after[n], plan.parameters[n] if plan else "all") for n in names])
    found = {n: series[0][1] for n, series in read_metrics(tmp_path).items()}
    assert found["Optim/update_global_norm"] == pytest.approx(moved, rel=1e-5) and moved > 0
    assert found["Optim/grad_global_norm"] == pytest.approx(moved / LR, rel=1e-3)
    assert found["Optim/param_global_norm"] == pytest.approx(values, rel=1e-5)


def _norm(tensors: list[torch.Tensor]) -> float:
    return torch.cat([t.flatten() for t in tensors]).double().norm().item()


def _chosen(value: torch.Tensor, choice: Any) -> torch.Tensor:
    return value.index_select(1 if choice.axis == "cols" else 0, torch.tensor(choice.index)) \
        if isinstance(choice, Slice) else value


def test_activations_are_over_all_passes_of_an_update(tmp_path: Path) -> None:
    run, _ = start(lambda model, ema: watcher(tmp_path, model, ema))
    other, _ = start()
    seen: list[torch.Tensor] = []
    mlp: nn.Module = other.model.blocks[0].mlp  # type: ignore[index,union-attr,assignment]
    mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    train(other, range(1))
    assert run.watch and len(seen) == 2
    with run.watch.monitor, run.watch:
        train(run, range(1))
    found, both = read_metrics(tmp_path), torch.cat(seen).double()
    assert found["Activations/block_0/mlp_out_mean"][0][1] == pytest.approx(both.mean().item(), abs=1e-6)
    assert found["Activations/block_0/mlp_out_std"][0][1] == pytest.approx(both.std(correction=0).item(), rel=1e-5)


def test_the_change_of_a_slice_is_of_the_columns_that_moved(tmp_path: Path) -> None:
    """Where other columns are chosen right after an update, as by dynamic sparsity."""
    run, applied = start(lambda model, ema: watcher(tmp_path, model, ema), PLAN)
    owner: Any = run.model.get_submodule("blocks.0.attn.qkv")
    old = owner.weight.detach().clone()

    def choose() -> None:
        applied.sync()
        owner.plan_index.copy_(torch.tensor([2, 3, 4]))
        with torch.no_grad():
            owner.plan_part.copy_(owner.weight[:, 2:5])

    assert run.watch
    with run.watch.monitor, run.watch, applied:
        train(run, range(1), sync=choose)
        moved = (owner.weight.detach() - old)[:, [1, 5, 6]]
    found: Any = read_metrics(tmp_path)["Updates/blocks.0.attn.qkv.weight"][0][1]
    assert (found.edges[0], found.edges[-1]) == pytest.approx((moved.min().item(), moved.max().item()), rel=1e-5)
    assert sum(found.counts) == moved.numel()
