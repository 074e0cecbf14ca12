"""Norms of the Gram residual: against the formula written out with the N x N matrix, and no trace on the model."""

from __future__ import annotations

import pytest
import torch

from algorithm import build_model
from algorithm.models import ModelConfig
from algorithm.monitor.gram import gram_norms

SMALL = {"depth": 2, "embed_dim": 16, "num_heads": 2}


def model_of(**gram: object) -> torch.nn.Module:
    return build_model(ModelConfig(name="vit_tiny_patch16_224", img_size=32, weights="none", extra=SMALL, gram=gram))


def test_the_norms_are_those_of_the_formula() -> None:
    model = model_of(enabled=True, rank=3)
    attention = model.blocks[1].attn
    torch.nn.init.normal_(attention.gram_b)
    images = torch.randn(3, 3, 32, 32)
    model.train()
    model.head.eval()
    state = torch.random.get_rng_state()
    found = gram_norms(model, images)
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.training and model.blocks.training and not model.head.training
    assert not any(m._forward_hooks for m in model.modules())

    seen: list[torch.Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model.eval()(images)
        handle.remove()
        x = seen[0]
        t = x @ x.transpose(1, 2) / x.shape[-1] @ (attention.gram_a @ attention.gram_b)
        z = attention(x) - t
    t_norm, z_norm = (torch.stack([torch.linalg.matrix_norm(image) for image in v]).mean().item() for v in (t, z))
    assert set(found) == {0, 1}
    assert found[1] == pytest.approx({
        "T_norm": t_norm, "Z_norm": z_norm, "T_over_Z_norm": t_norm / z_norm,
        "A_norm": attention.gram_a.norm().item(), "B_norm": attention.gram_b.norm().item()}, rel=1e-5)
    assert found[0]["T_norm"] == found[0]["B_norm"] == 0 and found[0]["Z_norm"] > 0


def test_only_blocks_with_a_residual_are_measured() -> None:
    assert set(gram_norms(model_of(enabled=True, blocks=[1]), torch.zeros(1, 3, 32, 32))) == {1}
    assert gram_norms(model_of(enabled=False), torch.zeros(1, 3, 32, 32)) == {}
