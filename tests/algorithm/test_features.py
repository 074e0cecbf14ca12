"""Patch tokens and attention maps of any ViT of timm: equal to a computation by hand, the model left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithm.errors import ModelError
from algorithm.models import GramConfig, get_attention_maps, get_patch_tokens
from algorithm.models.torchvision_shim import timm
from tests.algorithm.conftest import small_model

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
SMALL: dict[str, Any] = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 3}
VITS: dict[str, tuple[dict[str, Any], int]] = {     # name -> (timm arguments, prefix tokens)
    "vit_tiny_patch16_224": ({}, 1), "deit_tiny_distilled_patch16_224": ({}, 2), "vit_small_patch14_reg4_dinov2": ({}, 5),
    "deit3_small_patch16_224": ({}, 1), "vit_base_patch16_siglip_224": ({}, 0), "beit_base_patch16_224": ({}, 1),
    "eva02_tiny_patch14_224": ({}, 1), "vit_small_patch16_dinov3": ({}, 5), "vit_relpos_small_patch16_224": ({}, 0),
    "naflexvit_base_patch16_gap": ({}, 4), "vit_huge_patch14_xp_224": ({}, 1)}


def small_vit(name: str = "vit_tiny_patch16_224", **changes: Any) -> nn.Module:
    torch.manual_seed(1)
    model: nn.Module = timm.create_model(name, **{**SMALL, **changes}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def state_of(model: nn.Module) -> list[Any]:
    """Modes, flags and hooks of every module."""
    return [(m.training, m.__dict__.get("fused_attn"), list(m._forward_hooks), list(m._forward_pre_hooks), type(m))
            for m in model.modules()]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("extra", [{}, {"qk_norm": True}, {"reg_tokens": 3}, {"class_token": False, "global_pool": "avg"}],
                         ids=["plain", "qk_norm", "registers", "no class token"])
def test_maps_equal_a_computation_by_hand(extra: dict[str, Any], fused: bool) -> None:
    model, inputs = small_vit(**extra), []
    for block in model.blocks:
        block.attn.fused_attn = fused
    images = IMAGES.double()
    hooks = [b.attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for b in model.blocks]
    model.eval()(images)
    for hook in hooks:
        hook.remove()
    maps = get_attention_maps(model, images)
    assert len(maps) == 2
    for block, x, found in zip(model.blocks, inputs, maps, strict=True):
        q, k, _ = block.attn.qkv(x).reshape(2, -1, 3, 2, 12).permute(2, 0, 3, 1, 4)
        q, k = block.attn.q_norm(q), block.attn.k_norm(k)
        expected = torch.softmax(q @ k.transpose(-2, -1) * 12 ** -0.5, -1)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert not found.requires_grad


@pytest.mark.parametrize("name", VITS)
def test_any_vit_gives_both_and_is_left_as_it_was(name: str) -> None:
    extra, prefix = VITS[name]
    model, images = small_vit(name, **extra), IMAGES.double()
    model.train()
    model.blocks[1].eval()
    before = state_of(model)
    tokens, maps = get_patch_tokens(model, images), get_attention_maps(model, images)
    assert state_of(model) == before
    assert tokens.shape == (2, 4, 24) and not tokens.requires_grad
    assert [m.shape for m in maps] == [(2, 2, 4 + prefix, 4 + prefix)] * 2
    for found in maps:
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1], dtype=torch.float64))
        assert bool((found >= 0).all()) and float(found.std()) > 1e-4     # no map of equal parts


def test_patch_tokens_are_the_last_block_after_the_final_norm() -> None:
    model, images, last = small_vit(reg_tokens=2).eval(), IMAGES.double(), []
    hook = model.blocks[-1].register_forward_hook(lambda *args: last.append(args[2]))
    tokens = get_patch_tokens(model, images)
    hook.remove()
    assert torch.equal(tokens, model.norm(last[0])[:, 3:])


def test_additions_are_in_what_is_read() -> None:
    model, x = small_model(gram=GramConfig(enabled=True, rank=2)), torch.randn(2, 3, 16, 16)
    with_gram = get_attention_maps(model, x)
    for block in model.blocks:
        nn.init.zeros_(block.attn.gram_b)
    without = get_attention_maps(model, x)
    assert torch.equal(with_gram[0], without[0]) and not torch.equal(with_gram[1], without[1])


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = small_vit().train()
    before = state_of(model)
    for function in (get_attention_maps, get_patch_tokens):
        with pytest.raises(AssertionError, match="height"):
            function(model, torch.zeros(1, 3, 48, 48, dtype=torch.float64))
        assert state_of(model) == before


@pytest.mark.parametrize(("name", "match"), [
    ("cait_xxs24_224", r"Cait 'cait_xxs24_224' has no softmaxed attention map at blocks.0.attn \(TalkingHeadAttn\)"),
    ("xcit_tiny_12_p16_224", r"no attention map at blocks.0.attn \(XCA\): expected one of .* = \(2, 2, 4, 4\), found "),
    ("vit_dpwee_patch16_reg1_gap_256", r"no attention map at blocks.0 \(DiffParallelScalingBlock\)"),
    ("vit_small_patch16_18x2_224", r"blocks.0 has 2 attentions")])
def test_other_attention_is_refused_by_name(name: str, match: str) -> None:
    model = timm.create_model(name, **{**SMALL, "depth": 1}).train()
    before = state_of(model)
    with pytest.raises(ModelError, match=match) as caught:
        get_attention_maps(model, IMAGES)
    assert "\n" not in str(caught.value) and state_of(model) == before


def test_other_families_are_refused() -> None:
    mixer = timm.models.mlp_mixer.MlpMixer(img_size=32, patch_size=16, embed_dim=24, num_blocks=1)
    with pytest.raises(ModelError, match="MlpMixer has no patch tokens"):
        get_patch_tokens(mixer, IMAGES)
    with pytest.raises(ModelError, match=r"blocks.0 has no attentions"):
        get_attention_maps(mixer, IMAGES)
    with pytest.raises(ModelError, match="Linear has no attention maps"):
        get_attention_maps(nn.Linear(2, 2), IMAGES)


def test_half_precision_rows_still_sum_to_one() -> None:
    model = small_vit().float().to(torch.bfloat16)
    maps: list[Tensor] = get_attention_maps(model, IMAGES.to(torch.bfloat16))
    assert maps[0].dtype == torch.bfloat16
