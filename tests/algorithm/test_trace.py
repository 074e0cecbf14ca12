"""Traces: what a recorded run holds, random rounding, and what a damaged file says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from algorithm.errors import CheckpointError, DataError, PlanError
from algorithm.sparse import PlanConfig, UpdatePlan, resolve_plan
from algorithm.training import Trace, record_trace, run_steps
from algorithm.training.rounding import UNIT, RandomRounding
from algorithm.training.trace import WITNESSES
from tests.algorithm.conftest import small_data, small_model


def test_random_rounding_moves_results_by_a_unit_in_the_last_place_and_copies_not_at_all() -> None:
    x = torch.rand(1000) + 0.5
    with RandomRounding(0):
        product, view, copy, double = x * 1.5, x.reshape(10, 100), x.clone(), x.double() * 1.5
    off = (product.double() / (x * 1.5).double() - 1) / UNIT
    assert 0.3 < float((off != 0).float().mean()) < 0.9 and float(off.abs().max()) <= 1.5
    assert abs(float(off.mean())) < 0.1, "rounding has no direction"
    assert torch.equal(view.reshape(-1), x) and torch.equal(copy, x) and torch.equal(double, x.double() * 1.5)


def test_random_rounding_reaches_gradients_and_is_repeatable() -> None:
    def gradient(seed: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        layer, x = nn.Linear(8, 8), torch.randn(4, 8)
        if seed is None:
            return torch.autograd.grad(layer(x).tanh().sum(), layer.weight)[0]
        with RandomRounding(seed):
            return torch.autograd.grad(layer(x).tanh().sum(), layer.weight)[0]

    plain, one, same, other = (gradient(s) for s in (None, 1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other) and not torch.equal(one, plain)
    torch.testing.assert_close(one, plain, rtol=1e-5, atol=1e-5)


def test_updates_themselves_are_not_moved() -> None:
    """With a rate of 0 the weights stay what they are, to the bit, however results are rounded."""
    model, data = small_model(), small_data(2)
    plan = UpdatePlan({"head.weight": "all", "norm.bias": "all"})
    _, after = run_steps(model, plan, data.images, data.labels, 0.0, 0.0, torch.float32, rounding=5)
    assert all(torch.equal(after[n], dict(model.named_parameters())[n]) for n in plan.parameters)


def test_progress_counts_every_step_of_every_run() -> None:
    model, data = small_model(), small_data(3)
    seen: list[tuple[int, int]] = []
    record_trace(model, resolve_plan(PlanConfig(n_bias_update=0), model), data.images, data.labels, 0.05, device="cpu",
                 on_step=lambda done, of: seen.append((done, of)))
    total = 3 * (2 + WITNESSES)
    assert seen == [(i + 1, total) for i in range(total)]


def test_nothing_to_train_and_nothing_to_show_are_refused() -> None:
    model, data = small_model(), small_data(2)
    with pytest.raises(PlanError, match="trains nothing"):
        record_trace(model, UpdatePlan({}), data.images, data.labels, 0.05)
    with pytest.raises(DataError, match="as many images as labels"):
        record_trace(model, UpdatePlan({"head.bias": "all"}), data.images[:0], data.labels[:0], 0.05)
    with pytest.raises(DataError, match=r"one learning rate, or one a step \(2\), found an array \(3,\)"):
        record_trace(model, UpdatePlan({"head.bias": "all"}), data.images, data.labels, np.ones(3))


@pytest.mark.parametrize("damage", ["truncated", "older format", "array missing", "rates missing", "group incomplete",
                                    "lengths differ"])
def test_a_damaged_trace_is_one_clear_error(damage: str, tmp_path: Path) -> None:
    model, data = small_model(), small_data(2)
    path = tmp_path / "trace.safetensors"
    trace = record_trace(model, UpdatePlan({"head.bias": "all"}), data.images, data.labels, 0.05, path=path, device="cpu")
    tensors = load_file(path)
    header = {k: '"vit-trace-2"' if damage == "older format" and k == "format" else v
              for k, v in (("format", '"vit-trace-3"'),)}
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "older format":
        save_file(tensors, path, header)
    elif damage == "array missing":
        save_file({k: v for k, v in tensors.items() if k != "losses64"}, path, header)
    elif damage == "rates missing":
        save_file({k: v for k, v in tensors.items() if k != "lrs"}, path, header)
    elif damage == "group incomplete":
        save_file({k: v for k, v in tensors.items() if k != "witness_distances/head.bias"}, path, header)
    else:
        save_file({**tensors, "labels": torch.from_numpy(np.zeros(5, np.int64))}, path, header)
    with pytest.raises(CheckpointError, match=r"cannot read|no trace of format|is damaged") as caught:
        Trace.load(path)
    assert "\n" not in str(caught.value) and len(trace.losses64) == 2
