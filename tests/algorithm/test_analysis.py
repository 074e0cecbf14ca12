"""Attention, saliency, high-norm tokens and position embeddings against closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from algorithm.analysis.artifacts import last_layer_tokens, norm_statistics, token_norms
from algorithm.analysis.attention import cls_to_patch, cls_to_patch_layers, rollout
from algorithm.analysis.positions import has_positions, position_similarity
from algorithm.analysis.saliency import predicted, saliency
from algorithm.analysis.tokens import Tokens
from algorithm.errors import AnalysisError
from tests.algorithm.conftest import small_model

REGISTERS = Tokens(prefix=3)
NO_CLASS = Tokens(prefix=0, class_token=False)


def random_maps(layers: int = 3, images: int = 2, heads: int = 2, n: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(images, heads, n, n, generator=generator).softmax(-1) for _ in range(layers)]


def test_rollout_of_identity_attention_stays_at_the_class_token() -> None:
    maps = [torch.eye(7).expand(2, 2, 7, 7)] * 3
    assert torch.equal(rollout(maps), torch.zeros(2, 6))
    assert torch.equal(rollout(maps, NO_CLASS), torch.full((2, 7), 1 / 7))


def test_rollout_of_uniform_attention_is_its_closed_form() -> None:
    """(J/N + I)/2 to the power L is I/2^L + (1 - 1/2^L) J/N, as J/N is a projection."""
    n, layers = 7, 4
    maps = [torch.full((2, 3, n, n), 1 / n, dtype=torch.float64)] * layers
    share = (1 - 0.5 ** layers) / n
    torch.testing.assert_close(rollout(maps), torch.full((2, n - 1), share, dtype=torch.float64))
    assert rollout(maps, REGISTERS).shape == (2, n - 3)


def test_rollout_multiplies_from_the_last_block_to_the_first() -> None:
    """A class token that reads token 1 in the last block, where token 1 read token 2 before, has seen token 2."""
    first, last = torch.eye(3), torch.eye(3)
    first[1], last[0] = torch.tensor([0., 0, 1]), torch.tensor([0., 1, 0])
    flow = rollout([first[None, None], last[None, None]])
    torch.testing.assert_close(flow, torch.tensor([[0.25, 0.25]]))
    torch.testing.assert_close(rollout([last[None, None], first[None, None]]), torch.tensor([[0.5, 0.0]]))


def test_rows_of_the_rollout_sum_to_one_with_the_prefix_tokens() -> None:
    maps = random_maps()
    whole = rollout(maps, NO_CLASS)
    torch.testing.assert_close(whole.sum(-1), torch.ones(2))
    torch.testing.assert_close(rollout(maps, Tokens(prefix=3, class_token=False)), whole[:, 3:])


def test_cls_to_patch_is_a_row_of_the_map() -> None:
    maps = random_maps()
    assert torch.equal(cls_to_patch(maps, 1, 0), maps[1][:, 0, 0, 1:])
    assert torch.equal(cls_to_patch(maps, -1, -1, REGISTERS), maps[2][:, 1, 0, 3:])
    torch.testing.assert_close(cls_to_patch(maps, 0), maps[0][:, :, 0, 1:].mean(1))
    torch.testing.assert_close(cls_to_patch(maps, 2, 1, NO_CLASS), maps[2][:, 1].mean(1))
    assert torch.equal(cls_to_patch_layers(maps)[:, 2], cls_to_patch(maps, 2))


@pytest.mark.parametrize("layer, head, named", [(3, None, "layer 3"), (-4, None, "layer -4"), (0, 2, "head 2")])
def test_a_layer_or_head_that_is_not_there_is_refused(layer: int, head: int | None, named: str) -> None:
    with pytest.raises(AnalysisError, match=named):
        cls_to_patch(random_maps(), layer, head)


def test_maps_that_fit_no_model_are_refused() -> None:
    for maps, tokens in (([], Tokens()), ([torch.zeros(2, 3, 4)], Tokens()), ([torch.zeros(2, 3, 4, 5)], Tokens()),
                         (random_maps(n=2), REGISTERS), (random_maps(n=7), Tokens(grid=(2, 2)))):
        with pytest.raises(AnalysisError):
            rollout(maps, tokens)


def test_tokens_are_read_from_the_model() -> None:
    assert Tokens.of(small_model()) == Tokens(1, True, (2, 2))
    assert Tokens.of(small_model(extra={"depth": 1, "embed_dim": 16, "num_heads": 2, "reg_tokens": 2})) == \
        Tokens(3, True, (2, 2))
    pooled = small_model(pool="avg", extra={"depth": 1, "embed_dim": 16, "num_heads": 2, "class_token": False})
    assert Tokens.of(pooled) == Tokens(0, False, (2, 2))
    any_size = small_model(extra={"depth": 1, "embed_dim": 16, "num_heads": 2, "dynamic_img_size": True})
    assert Tokens.of(any_size, torch.zeros(1, 3, 24, 32)).grid == (3, 4)
    with pytest.raises(AnalysisError, match="patch_embed"):
        Tokens.of(nn.Linear(2, 2))
    any_size.patch_embed = nn.Identity()
    any_size.patch_embed.patch_size = 8
    with pytest.raises(AnalysisError, match="grid_size"):
        Tokens.of(any_size, torch.zeros(1, 3, 16, 16))
    assert torch.equal(Tokens(grid=(2, 3)).as_grid(torch.arange(6)), torch.arange(6).reshape(2, 3))
    with pytest.raises(AnalysisError, match="6 patches"):
        Tokens().as_grid(torch.zeros(6))


class LinearScores(nn.Module):
    """logits = <w_k, image>: its gradient is w_k, whatever the image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1)))
        self.drop = nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", self.drop(x), self.weight)


def test_saliency_of_linear_scores_is_their_weights() -> None:
    model, x = LinearScores().train(), torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    w = model.weight.detach()
    torch.testing.assert_close(saliency(model, x, [1, 3]), w[[1, 3]].abs().amax(1))
    torch.testing.assert_close(saliency(model, x, [1, 3], "gradient-x-input"), (w[[1, 3]] * x).sum(1))
    best = torch.einsum("bchw,kchw->bk", x, w).argmax(1)
    assert torch.equal(predicted(model, x), best)
    assert torch.equal(saliency(model, x), saliency(model, x, best))


def test_saliency_leaves_the_model_as_it_was() -> None:
    model = small_model().train()
    model.blocks[0].eval()
    model.blocks[1].attn.qkv.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(3)
    before = ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert float(saliency(model, x).abs().max()) > 0
    assert before == ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
    assert torch.equal(model.head.bias.grad, torch.ones(3))
    assert sum(p.grad is not None for p in model.parameters()) == 1
    assert not x.requires_grad
    for wrong in ({"method": "guess"}, {"classes": [1]}):
        with pytest.raises(AnalysisError):
            saliency(model, x, **wrong)
    assert before == ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])


def test_constructed_outliers_are_counted() -> None:
    tokens = torch.zeros(4, 50, 8)
    tokens[..., 0] = 1.0
    tokens[0, 7] = 10.0                                                         # norm 10 sqrt(8)
    tokens[3, 49, 0] = -40.0
    norms = token_norms(tokens)
    found = norm_statistics(norms)
    expected = np.ones(200)
    expected[7], expected[199] = 10 * 8 ** 0.5, 40
    assert np.allclose(found.norms.ravel(), expected, rtol=1e-6)
    assert found.mean == pytest.approx(expected.mean()) and found.std == pytest.approx(expected.std())
    assert found.limit == pytest.approx(expected.mean() + 3 * expected.std())
    assert found.metrics()["l2_outlier_ratio"] == 2 / 200
    assert norm_statistics(torch.ones(2, 5)).outlier_ratio == 0
    for wrong in (torch.tensor([[1.0, np.nan]]), torch.zeros(0, 4)):
        with pytest.raises(AnalysisError, match="not finite"):
            norm_statistics(wrong)


def test_tokens_of_the_last_block_are_taken_before_the_final_norm() -> None:
    model, x = small_model(), torch.randn(2, 3, 16, 16)
    found = last_layer_tokens(model, x)
    torch.testing.assert_close(model.norm(found), model.forward_features(x)[:, 1:])
    assert not model.blocks[-1]._forward_hooks
    with pytest.raises(AnalysisError, match="no blocks"):
        last_layer_tokens(nn.Linear(2, 2), x)


def test_patches_of_a_block_without_or_with_prefix_tokens() -> None:
    """CaiT adds its class token behind the blocks; SAM's blocks keep rows and columns."""
    layout, x = Tokens(2, True, (2, 3)), torch.arange(2 * 8 * 4.0).reshape(2, 8, 4)
    assert torch.equal(layout.patches_of(x), x[:, 2:]) and torch.equal(layout.patches_of(x[:, :6]), x[:, :6])
    assert torch.equal(Tokens(0, False, (2, 3)).patches_of(x[:, :6].reshape(2, 2, 3, 4)), x[:, :6])
    assert torch.equal(Tokens(2, True).patches_of(x), x[:, 2:])
    with pytest.raises(AnalysisError, match="7 tokens"):
        layout.patches_of(x[:, :7])


def test_no_name_that_the_package_shows_is_a_module_of_it() -> None:
    """A loaded module would take the name's place."""
    import algorithm.analysis as package

    modules = {p.stem for p in Path(package.__file__).parent.glob("*.py")}
    assert set(package.__all__) & modules == set() and all(getattr(package, n) for n in package.__all__)


def test_similarity_of_known_position_embeddings() -> None:
    model = small_model(extra={"depth": 1, "embed_dim": 16, "num_heads": 2, "reg_tokens": 2, "no_embed_class": True})
    table = torch.zeros(1, 4, 16)
    table[0, 0, 0], table[0, 1, 0], table[0, 2, 0] = 1.0, -3.0, 2.0
    table[0, 2, 1] = 2.0                                                        # 45 degrees from the first; the last is 0
    model.pos_embed = nn.Parameter(table)
    found = position_similarity(model).reshape(4, 4)
    expected = torch.tensor([[1, -1, .5 ** .5, 0], [-1, 1, -.5 ** .5, 0], [.5 ** .5, -.5 ** .5, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(found, expected.double())


def test_similarity_leaves_out_the_class_token() -> None:
    model = small_model()
    patches = model.pos_embed[0, 1:].double()
    cosines = torch.nn.functional.cosine_similarity(patches[:, None], patches[None], dim=-1)
    torch.testing.assert_close(position_similarity(model), cosines.detach().reshape(2, 2, 2, 2))
    model.pos_embed = None
    assert not has_positions(model)
    with pytest.raises(AnalysisError, match="pos_embed"):
        position_similarity(model)
