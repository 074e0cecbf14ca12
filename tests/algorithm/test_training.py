"""Training: masked gradients equal full autograd's, frozen parts stay, resume is bit-equal, traces round-trip."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from algorithm.errors import CheckpointError, NonFiniteLossError, PlanError
from algorithm.models import GramConfig, LoraConfig, images_to_input, input_scale_shift
from algorithm.sparse import AppliedPlan, PlanConfig, Slice, UpdatePlan, resolve_plan
from algorithm.training import Trace, TrainConfig, evaluate, finetune, image_order, record_trace, run_steps, save_model
from algorithm.training.prefix import FrozenPrefix
from algorithm.training.trace import WITNESSES
from tests.algorithm.conftest import small_data, small_model

RULES: list[dict] = [
    {"n_bias_update": 1}, {"n_bias_update": 0}, {"enable_backward_config": False},
    {"n_bias_update": 0, "n_weight_update": 2, "weight_update_ratio": 0.25},
    {"n_bias_update": "all", "n_weight_update": 1, "weight_update_ratio": 0.5, "weight_select_axis": "rows"},
    {"n_bias_update": 0, "n_gram_update": 2, "n_lora_update": "all", "n_weight_update": "all",
     "weight_update_ratio": 0.25},
]


def rich_model() -> nn.Module:
    return small_model(gram=GramConfig(enabled=True, rank=2), lora=LoraConfig(enabled=True, rank=2)).double()


def part(tensor: torch.Tensor, choice: object) -> torch.Tensor:
    if isinstance(choice, Slice):
        return tensor[:, list(choice.index)] if choice.axis == "cols" else tensor[list(choice.index)]
    return tensor


@pytest.mark.parametrize("rule", RULES)
def test_masked_gradients_equal_full_autograd(rule: dict) -> None:
    model = rich_model()
    plan = resolve_plan(PlanConfig(**rule), model)
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([1])
    named = dict(copy.deepcopy(model).named_parameters())
    twin = copy.deepcopy(model)
    loss = F.cross_entropy(twin(x), label)
    full = dict(zip(named, torch.autograd.grad(loss, list(dict(twin.named_parameters()).values())), strict=True))
    with AppliedPlan(model, plan) as applied:
        masked_loss = F.cross_entropy(model(x), label)
        gradients = torch.autograd.grad(masked_loss, list(applied.leaves.values()))
        assert {id(p) for p in model.parameters() if p.requires_grad} == {id(leaf) for leaf in applied.leaves.values()}
    torch.testing.assert_close(masked_loss, loss, rtol=1e-13, atol=0)
    assert list(applied.leaves) == [] and set(plan.parameters) <= set(full)
    for name, gradient in zip(plan.parameters, gradients, strict=True):
        torch.testing.assert_close(gradient, part(full[name], plan.parameters[name]), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("rule", RULES)
def test_updates_touch_the_plan_only_and_leave_the_module_as_it_was(rule: dict) -> None:
    model = rich_model().float()
    before, kinds = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    plan = resolve_plan(PlanConfig(**rule), model)
    finetune(model, plan, small_data(), TrainConfig(lr=0.05, epochs=2, momentum=0.5))
    assert [type(m) for m in model.modules()] == kinds and all(p.requires_grad for p in model.parameters())
    for name, now in model.state_dict().items():
        choice = plan.parameters.get(name)
        if choice is None:
            assert torch.equal(now, before[name]), name
        elif isinstance(choice, Slice):
            axis = 1 if choice.axis == "cols" else 0
            rest = [i for i in range(now.shape[axis]) if i not in choice.index]
            keep = torch.tensor(rest)
            assert torch.equal(now.index_select(axis, keep), before[name].index_select(axis, keep))
            assert not torch.equal(now, before[name]), name


def test_sgd_with_momentum_is_torchs() -> None:
    model, data = small_model(), small_data()
    twin = copy.deepcopy(model)
    plan = resolve_plan(PlanConfig(enable_backward_config=False), model)
    losses = finetune(model, plan, data, TrainConfig(lr=0.02, momentum=0.9, epochs=1, schedule="constant")).losses
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.02, momentum=0.9)
    scale, shift = input_scale_shift(twin)
    for i in range(len(data)):
        loss = F.cross_entropy(twin(images_to_input(data.images[i:i + 1], scale, shift)),
                               torch.tensor([data.labels[i]]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert losses[i] == pytest.approx(float(loss.detach()), rel=1e-6)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, twin.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [{"n_bias_update": 1}, {"n_bias_update": 0}])
def test_cached_prefix_changes_no_bit(rule: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    cached, plain = copy.deepcopy(model), copy.deepcopy(model)
    plan = resolve_plan(PlanConfig(**rule), model)
    with_cache = finetune(cached, plan, small_data(), TrainConfig(lr=0.02, epochs=3)).losses
    monkeypatch.setattr("algorithm.training.loop.CACHE_BYTES", 0)
    without = finetune(plain, plan, small_data(), TrainConfig(lr=0.02, epochs=3)).losses
    assert np.array_equal(with_cache, without)
    assert all(torch.equal(a, b) for a, b in zip(cached.state_dict().values(), plain.state_dict().values(),
                                                 strict=True))


def test_the_prefix_keeps_no_graph() -> None:
    model = small_model()
    plan = resolve_plan(PlanConfig(n_bias_update=1), model)
    prefix = FrozenPrefix(model, plan, torch.zeros(1, 3, 16, 16))
    assert prefix.active and prefix.block == 2
    assert not prefix.below(torch.zeros(1, 3, 16, 16)).requires_grad
    everything = resolve_plan(PlanConfig(enable_backward_config=False), model)
    assert not FrozenPrefix(model, everything, torch.zeros(1, 3, 16, 16)).active


def test_resume_is_bit_equal(tmp_path) -> None:
    data, model = small_data(), small_model()
    plan = resolve_plan(PlanConfig(n_bias_update=2, n_weight_update=1, weight_update_ratio=0.25), model)
    config = TrainConfig(lr=0.05, momentum=0.9, epochs=3, checkpoint_every=5)
    whole, broken = copy.deepcopy(model), copy.deepcopy(model)
    losses = finetune(whole, plan, data, config).losses
    path = tmp_path / "train.safetensors"

    def stop(step: int, loss: float) -> None:
        if step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(broken, plan, data, config, checkpoint=path, on_step=stop)
    resumed = copy.deepcopy(model)
    result = finetune(resumed, plan, data, config, checkpoint=path)
    assert result.resumed_steps == 12 and np.array_equal(result.losses, losses)
    assert all(torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(),
                                                 strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["train.safetensors"]
    with pytest.raises(CheckpointError, match="its lr differs"):
        finetune(copy.deepcopy(model), plan, data, TrainConfig(lr=0.06, momentum=0.9), checkpoint=path)


def test_order_is_the_datas_first_then_shuffled_by_seed() -> None:
    order = image_order(5, 3, seed=1)
    assert list(order[:5]) == [0, 1, 2, 3, 4] and sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert np.array_equal(order, image_order(5, 3, seed=1)) and len(image_order(5, 3, 1, steps=7)) == 7


def test_non_finite_loss_names_the_step() -> None:
    model = small_model()
    plan = resolve_plan(PlanConfig(enable_backward_config=False), model)
    with pytest.raises(NonFiniteLossError, match=r"step \d+ .* lower train.lr") as caught:
        finetune(model, plan, small_data(), TrainConfig(lr=1e30, epochs=3))
    assert caught.value.step > 0


def test_only_linears_can_be_sliced() -> None:
    model = small_model(lora=LoraConfig(enabled=True, rank=2))
    with pytest.raises(PlanError, match="not the weight of a linear"):
        AppliedPlan(model, UpdatePlan({"blocks.0.attn.qkv.lora_a": Slice("cols", (0, 1))}))


def test_evaluate_counts_by_image_whatever_the_batch() -> None:
    model, data = small_model(), small_data(7)
    one, all_ = evaluate(model, data, batch=1), evaluate(model, data, batch=16)
    assert one.accuracy == all_.accuracy and one.count == 7 and one.loss == pytest.approx(all_.loss, rel=1e-5)
    assert one.accuracy == float((one.predictions == data.labels).mean())


def test_trace_round_trip(tmp_path) -> None:
    model, data = small_model(gram=GramConfig(enabled=True, rank=2)), small_data()
    before = copy.deepcopy(model.state_dict())
    rule = PlanConfig(n_bias_update=2, n_gram_update=1, n_weight_update=1, weight_update_ratio=0.25)
    plan = resolve_plan(rule, model)
    trace = record_trace(model, plan, data.images, data.labels, 0.05, 0.5, tmp_path / "t.safetensors", device="cpu")
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    again = Trace.load(tmp_path / "t.safetensors")
    assert again.plan == plan and again.metadata == trace.metadata
    assert np.array_equal(again.lrs, np.full(len(data), np.float32(0.05)))
    assert again.images.dtype == np.uint8 and again.labels.dtype == np.int64 and again.losses64.dtype == np.float64
    for group, dtype in (("init", np.float32), ("final32", np.float32), ("final64", np.float64)):
        ours, theirs = getattr(trace, group), getattr(again, group)
        assert sorted(ours) == sorted(plan.parameters) and all(a.dtype == dtype for a in theirs.values())
        assert all(np.array_equal(ours[n], theirs[n]) for n in ours)
    assert np.array_equal(again.init["head.weight"], before["head.weight"].numpy())
    assert np.max(np.abs(trace.losses32 - trace.losses64)) < 1e-5
    assert trace.witness_losses.shape == (WITNESSES, len(data))
    assert np.array_equal(again.witness_losses, trace.witness_losses)
    assert len(np.unique(trace.witness_distances["head.weight"][:, 1])) == WITNESSES, "witnesses are different programs"
    for name, found in trace.witness_distances.items():
        assert found.shape == (WITNESSES, 3) and np.array_equal(again.witness_distances[name], found)
        assert found[:, 0].max() < 1e-5
    losses = finetune(model, plan, data, TrainConfig(lr=0.05, momentum=0.5, epochs=1, schedule="constant")).losses
    np.testing.assert_allclose(losses, trace.losses32, rtol=1e-6)


def test_float64_run_is_finite_difference_exact() -> None:
    model, data = small_model(), small_data(1)
    plan = UpdatePlan({"blocks.1.attn.qkv.weight": Slice("cols", (2, 5))})
    _, after = run_steps(model, plan, data.images, data.labels, 1.0, 0.0, torch.float64)
    name = "blocks.1.attn.qkv.weight"
    gradient = (dict(model.named_parameters())[name].detach().double() - after[name])
    step = 1e-6
    plus, minus = copy.deepcopy(model).double(), copy.deepcopy(model).double()
    with torch.no_grad():
        plus.blocks[1].attn.qkv.weight[40, 5] += step
        minus.blocks[1].attn.qkv.weight[40, 5] -= step
        scale, shift = input_scale_shift(model)
        x, y = images_to_input(data.images, scale, shift, torch.float64), torch.from_numpy(data.labels)
        slope = (F.cross_entropy(plus(x), y) - F.cross_entropy(minus(x), y)) / (2 * step)
    assert float(gradient[40, 5]) == pytest.approx(float(slope), rel=1e-5)
    assert not gradient[:, [i for i in range(16) if i not in (2, 5)]].any()


def test_saved_models_load_as_weights(tmp_path) -> None:
    model = small_model()
    save_model(model, tmp_path / "model.safetensors", note="x")
    again = small_model(weights=str(tmp_path / "model.safetensors"))  # the fixture adds noise; only names matter
    assert again.state_dict().keys() == model.state_dict().keys()
    with pytest.raises(CheckpointError, match="cannot write"):
        save_model(model, "/proc/nowhere/model.safetensors")
