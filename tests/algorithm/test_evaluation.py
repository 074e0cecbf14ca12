"""Evaluation: figures by image, whatever the batch and the cores; a zero head is known; idle additions change no bit."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from algorithm.data import Dataset
from algorithm.models import GramConfig, LoraConfig, ModelConfig, build_model, images_to_input, input_scale_shift
from algorithm.models.additions import idle_additions
from algorithm.sparse import AppliedPlan, PlanConfig, UpdatePlan, resolve_plan
from algorithm.training import Evaluation, TrainConfig, evaluate, finetune
from algorithm.training.evaluation import macro_f1
from algorithm.training.prefix import FrozenPrefix
from algorithm.training.threads import cores
from tests.algorithm.conftest import SMALL, small_data, small_model

GRAM, LORA = GramConfig(rank=2), LoraConfig(enabled=True, rank=2)


def equal(a: Evaluation, b: Evaluation) -> bool:
    return (a.accuracy, a.loss, a.count, a.macro_f1) == (b.accuracy, b.loss, b.count, b.macro_f1) and np.array_equal(
        a.predictions, b.predictions) and np.array_equal(a.confusion, b.confusion)


def plain(model: nn.Module, data: Dataset, batch: int) -> tuple[list[int], float]:
    """The predictions and the mean loss, written out."""
    scale, shift = input_scale_shift(model)
    torch.set_num_threads(1)
    predictions, loss = [], 0.0
    with torch.no_grad():
        for at in range(0, len(data), batch):
            logits = model(images_to_input(data.images[at:at + batch], scale, shift))
            loss += float(F.cross_entropy(logits, torch.from_numpy(data.labels[at:at + batch]), reduction="sum"))
            predictions += logits.argmax(1).tolist()
    return predictions, loss / len(data)


@pytest.mark.parametrize("threads", [1, 2, 5, None])
def test_figures_do_not_depend_on_the_threads(threads: int | None) -> None:
    model, data = small_model(gram=GRAM), small_data(23)
    torch.set_num_threads(2)
    found = evaluate(model, data, 4, threads=threads)
    assert torch.get_num_threads() == 2
    predictions, loss = plain(model, data, 4)
    assert found.predictions.tolist() == predictions and found.loss == loss
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (data.labels, predictions), 1)
    assert np.array_equal(found.confusion, confusion) and found.accuracy == confusion.trace() / 23
    scores = 2 * confusion.diagonal() / np.maximum(confusion.sum(0) + confusion.sum(1), 1)
    assert found.macro_f1 == pytest.approx(scores.mean(), rel=1e-12)


def test_macro_f1_is_scikit_learns_and_leaves_out_classes_that_do_not_occur() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 4, 50), rng.integers(1, 5, 50)
    confusion = np.zeros((6, 6), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert macro_f1(confusion) == pytest.approx(f1_score(labels, predicted, average="macro"), rel=1e-12)


def test_progress_comes_in_order_and_can_end_it() -> None:
    model, data = small_model(), small_data(23)
    seen: list[int] = []
    evaluate(model, data, 4, seen.append)
    assert seen == [4, 8, 12, 16, 20, 23]

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, data, 4, stop)


def test_cores_can_be_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores() >= 1


@pytest.mark.parametrize("changes", [{}, {"pool": "avg"}, {"gram": GRAM}, {
    "lora": LoraConfig(enabled=True, rank=2, targets=["head"])}])
def test_a_zero_head_is_known_after_one_image(changes: dict[str, Any]) -> None:
    model, data = build_model(ModelConfig(**{**SMALL, "head_init": "zeros", **changes})), small_data(23)
    ran: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, inputs: ran.append(len(inputs[0])))
    known = evaluate(model, data, 4)
    assert ran == [1] and known.predictions.tolist() == [0] * 23 and known.loss == pytest.approx(math.log(3), rel=1e-6)
    handle.remove()
    with torch.no_grad():
        predictions, loss = plain(model, data, 4)
    assert known.predictions.tolist() == predictions and known.loss == loss


@pytest.mark.parametrize("name", ["head.weight", "head.bias", "head.lora_b"])
def test_a_head_that_is_not_all_zeros_is_run(name: str) -> None:
    model = build_model(ModelConfig(**{**SMALL, "head_init": "zeros", "lora": LoraConfig(
        enabled=True, rank=2, targets=["head"])}))
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[0] = 1e-30
    ran: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: ran.append(len(inputs[0])))
    evaluate(model, small_data(7), 4)
    assert sorted(ran) == [3, 4]


def test_a_model_that_has_the_last_word_after_its_head_is_run() -> None:
    class Odd(nn.Module):
        """Adds to what its head gives."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = build_model(ModelConfig(**{**SMALL, "head_init": "zeros"}))
            self.head, self.pretrained_cfg = self.inner.head, self.inner.pretrained_cfg

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + torch.tensor([0.0, 0.0, 1.0])

    assert evaluate(Odd(), small_data(7), 4).predictions.tolist() == [2] * 7


def zero_b(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gram_b", "lora_b")):
                parameter.zero_()
    return model


@pytest.mark.parametrize("rule", [
    {"n_bias_update": "all"}, {"enable_backward_config": True, "n_bias_update": 0},
    {"n_bias_update": 2, "n_weight_update": "all", "weight_update_ratio": 0.25},
    {"n_bias_update": 1, "n_gram_update": 1, "n_lora_update": 2}, {"enable_backward_config": False},
    {"n_bias_update": 0, "parameters": {"blocks.0.attn.gram_a": "all"}}])
def test_idle_additions_are_skipped_without_changing_a_bit(rule: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = zero_b(small_model(gram=GRAM, lora=LORA))
    plan = resolve_plan(PlanConfig(**rule), model)
    skipping, computing = copy.deepcopy(model), copy.deepcopy(model)
    config = TrainConfig(lr=0.05, momentum=0.5, epochs=3)
    with AppliedPlan(copy.deepcopy(model), plan) as applied:
        every = {f"blocks.{b}.attn.{n}" for b in range(3) for n in ("gram", "qkv.lora", "proj.lora")}
        used = {n.rpartition("_")[0] for n in plan.parameters if n.endswith(("gram_a", "gram_b", "lora_a", "lora_b"))}
        assert set(applied.idle) == every - used
    losses = finetune(skipping, plan, small_data(), config).losses
    with monkeypatch.context() as patch:
        patch.setattr("algorithm.models.gram.GramMixin.gram_idle", property(lambda self: False, lambda self, on: None,
                                                                          lambda self: None))
        patch.setattr("algorithm.models.lora.LoraLinear.lora_idle", property(lambda self: False, lambda self, on: None,
                                                                           lambda self: None))
        assert np.array_equal(losses, finetune(computing, plan, small_data(), config).losses)
    assert all(torch.equal(a, b) for a, b in zip(skipping.state_dict().values(), computing.state_dict().values(),
                                                 strict=True))


def test_an_addition_that_does_something_is_never_idle() -> None:
    model = zero_b(small_model(gram=GRAM, lora=LORA))
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model.blocks[0].attn.gram_b[0, 0] = 1e-3  # type: ignore[union-attr,index]
        model.blocks[2].attn.qkv.lora_b[0, 0] = float("nan")  # type: ignore[union-attr,index]
    with idle_additions(model) as idle:
        assert "blocks.0.attn.gram" not in idle and "blocks.2.attn.qkv.lora" not in idle and len(idle) == 7
        with idle_additions(model) as inner:
            assert inner == []
        assert model.blocks[1].attn.gram_idle  # type: ignore[union-attr]
    assert not any(getattr(m, "gram_idle", False) or getattr(m, "lora_idle", False) for m in model.modules())
    with torch.no_grad():
        model.blocks[1].attn.gram_b.fill_(1.0)  # type: ignore[union-attr,operator]
        assert not torch.equal(model(x), zero_b(copy.deepcopy(model))(x))


@pytest.mark.parametrize("changes", [
    {"gram": GRAM}, {"lora": LORA}, {"pool": "avg"}, {"img_size": 20},
    *({"extra": {**SMALL["extra"], **e}} for e in ({"reg_tokens": 2}, {"no_embed_class": True}, {"pre_norm": True},
                                                  {"init_values": 0.1}, {"qk_norm": True}, {"class_token": False}))],
    ids=str)
@pytest.mark.parametrize("rule", [{"n_bias_update": 1}, {"n_bias_update": 0}])
def test_the_frozen_prefix_is_the_models_own(changes: dict[str, Any], rule: dict[str, Any]) -> None:
    changes = {**changes, **({"pool": "avg"} if "class_token" in str(changes) else {})}
    model = small_model(**changes)
    plan: UpdatePlan = resolve_plan(PlanConfig(**rule), model)
    x = torch.randn(2, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))  # type: ignore[misc,union-attr]
    prefix = FrozenPrefix(model, plan, x[:1])
    assert prefix.active and prefix.block == (2 if rule["n_bias_update"] else 3)
    assert torch.equal(prefix.above(prefix.below(x)), model(x))
