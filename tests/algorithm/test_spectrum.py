"""Spectra against matrices whose singular values are known."""

from __future__ import annotations

from math import exp, inf, isnan, log

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithm.analysis.matrices import kind_of, layer_of, weight_matrices
from algorithm.analysis.spectrum import change, followed, measure, metrics
from algorithm.errors import AnalysisError
from tests.algorithm.conftest import small_model


def matrix_of(values: list[float], rows: int = 8, columns: int = 6, seed: int = 0) -> Tensor:
    """float64 (rows, columns) with these singular values, and random vectors."""
    generator = torch.Generator().manual_seed(seed)
    q = [torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for n in (rows, columns)]
    sigma = torch.zeros(rows, columns, dtype=torch.float64)
    sigma[range(len(values)), range(len(values))] = torch.tensor(values, dtype=torch.float64)
    return q[0] @ sigma @ q[1].T


def test_known_values_and_their_sums() -> None:
    values = [5.0, 4, 3, 2, 1, 0.5]
    found = measure("w", matrix_of(values), dtype=torch.float64)
    assert np.allclose(found.values, values, rtol=1e-12)
    p = [v / sum(values) for v in values]
    assert found.sigma_max == pytest.approx(5) and found.frobenius == pytest.approx(55.25 ** 0.5)
    assert found.stable_rank == pytest.approx(55.25 / 25) and found.condition == pytest.approx(10)
    assert found.effective_rank == pytest.approx(exp(-sum(q * log(q) for q in p))) and found.rank == 6


def test_rank_one_identity_and_zero() -> None:
    one = measure("w", matrix_of([3.0]), dtype=torch.float64)
    assert (one.rank, one.condition) == (1, inf)
    assert one.stable_rank == pytest.approx(1) and one.effective_rank == pytest.approx(1, abs=1e-9)
    eye = measure("w", torch.eye(6))
    assert (eye.effective_rank, eye.stable_rank, eye.condition) == pytest.approx((6, 6, 1))
    zero = measure("w", torch.zeros(4, 3), vectors=True)
    assert zero.summary() == {"sigma_max": 0, "frobenius": 0, "stable_rank": 0, "effective_rank": 0, "rank": 0,
                              "condition": inf}


def test_indices_are_followed_by_interval_from_both_ends() -> None:
    assert followed(10, 3, 2) == ((0, 2, 4), (9, 7, 5))
    assert followed(3, 5) == ((0, 1, 2), (2, 1, 0))
    assert followed(5, 2, 4) == ((0, 4), (4, 0))
    assert followed(3, None) == ((0, 1, 2), ())
    for k, interval in ((0, 1), (2, 0)):
        with pytest.raises(AnalysisError, match="at least 1"):
            followed(3, k, interval)


def test_vectors_are_those_of_the_values() -> None:
    w = matrix_of([5.0, 4, 3, 2, 1, 0.5])
    found = measure("w", w, topk=2, interval=2, vectors=True, dtype=torch.float64)
    assert found.u is not None and found.v is not None and (found.u.shape, found.v.shape) == ((8, 4), (6, 4))
    for column, i in enumerate([0, 2, 5, 3]):
        assert np.allclose(w.numpy() @ found.v[:, column], found.values[i] * found.u[:, column])


def test_a_matrix_agrees_with_itself_and_with_its_negative() -> None:
    w = matrix_of([5.0, 4, 3, 2, 1, 0.5])
    now = measure("w", w, topk=3, vectors=True)
    for other in (w, -w):
        moved = change(now, measure("w", other, topk=3, vectors=True))
        assert np.allclose(moved.cos_u, 1, atol=1e-6) and np.allclose(moved.cos_v, 1, atol=1e-6)
        assert moved.delta_sv_rel < 1e-6
    doubled = change(measure("w", 2 * w, topk=3, vectors=True), now)
    assert doubled.delta_sv_rel == pytest.approx(1, abs=1e-6)


def test_a_rotation_of_the_outputs_turns_the_left_vectors_alone() -> None:
    w = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    turn = torch.eye(3)
    turn[:2, :2] = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    moved = change(measure("w", turn @ w, topk=3, vectors=True), measure("w", w, topk=3, vectors=True))
    assert np.allclose(moved.cos_u, [0.6, 0.6, 1, 1, 0.6, 0.6], atol=1e-6) and np.allclose(moved.cos_v, 1, atol=1e-6)
    assert moved.delta_sv_rel < 1e-6


def test_metrics_have_the_names_of_the_issue_and_leave_out_what_is_undefined() -> None:
    w = matrix_of([5.0, 4, 3, 2, 1, 0.5])
    now = measure("w", w, topk=2, vectors=True)
    assert list(metrics(now)) == ["sigma_max", "sv1", "sv2", "sv_last1", "sv_last2"]
    assert metrics(now)["sv_last1"] == pytest.approx(0.5)
    both = metrics(now, now)
    cosines = [f"cos_{s}{n}" for s in "uv" for n in ("1", "2", "_last1", "_last2", "_max", "_mean")]
    assert list(both) == [*metrics(now), "delta_sv_rel", *cosines] and both["cos_u_mean"] == pytest.approx(1)
    zero = measure("w", torch.zeros(8, 6), topk=2, vectors=True)
    assert list(metrics(now, zero)) == list(metrics(now)) and isnan(change(now, zero).delta_sv_rel)
    low = measure("w", matrix_of([5.0, 4]), topk=2, vectors=True)
    for moved in (change(now, low), change(low, now)):
        assert np.isnan(moved.cos_u).tolist() == np.isnan(moved.cos_v).tolist() == [False, False, True, True]
    assert set(metrics(low, low)) >= {"cos_u1", "cos_u2", "cos_u_mean"} and "cos_u_last1" not in metrics(low, low)


def test_measurements_that_cannot_be_compared_are_refused() -> None:
    w = matrix_of([5.0, 4, 3])
    now = measure("w", w, topk=2, vectors=True)
    others = {"topk": measure("w", w, topk=3, vectors=True), "same matrix": measure("v", w, topk=2, vectors=True),
              "vectors=True": measure("w", w, topk=2)}
    for named, other in others.items():
        with pytest.raises(AnalysisError, match=named):
            change(now, other)


def test_what_is_not_finite_is_named() -> None:
    with pytest.raises(AnalysisError, match=r"blocks\.0\.attn\.qkv"):
        measure("blocks.0.attn.qkv", torch.full((3, 3), float("nan")))


def test_float64_sees_what_float32_cannot() -> None:
    w = matrix_of([1.0, 1e-3, 1e-10], 5, 3)
    assert measure("w", w, dtype=torch.float64).values[2] == pytest.approx(1e-10, rel=1e-3)
    assert measure("w", w, dtype=torch.float64).rank == 3 and measure("w", w).rank == 2
    assert measure("w", w.bfloat16()).values.dtype == np.float64


def test_matrices_of_a_model_and_the_parts_of_qkv() -> None:
    model = small_model(gram={"enabled": True, "rank": 2}, extra={"depth": 1, "embed_dim": 16, "num_heads": 2})
    found = weight_matrices(model)
    assert {n: tuple(m.shape) for n, m in found.items()} == {
        "pos_embed": (5, 16), "patch_embed.proj": (16, 192), "blocks.0.attn.qkv": (48, 16), "blocks.0.attn.proj": (16, 16),
        "blocks.0.attn.gram_a": (5, 2), "blocks.0.attn.gram_b": (2, 16), "blocks.0.mlp.fc1": (64, 16),
        "blocks.0.mlp.fc2": (16, 64), "head": (3, 16)}
    qkv = model.blocks[0].attn.qkv.weight.detach()
    parts = weight_matrices(model, ["attn.qkv"], split_qkv=True)
    assert list(parts) == [f"blocks.0.attn.qkv.{p}" for p in "qkv"]
    for i, part in enumerate(parts.values()):
        assert torch.equal(part, qkv[16 * i:16 * (i + 1)])
    assert torch.equal(found["patch_embed.proj"], model.patch_embed.proj.weight.reshape(16, -1))


def test_targets_are_endings_or_globs() -> None:
    model = small_model()
    assert list(weight_matrices(model, ["attn.proj"])) == [f"blocks.{i}.attn.proj" for i in range(3)]
    assert list(weight_matrices(model, ["blocks.[01].mlp.*"])) == [f"blocks.{i}.mlp.fc{n}" for i in (0, 1) for n in (1, 2)]
    assert list(weight_matrices(model, "proj")) == ["patch_embed.proj", *(f"blocks.{i}.attn.proj" for i in range(3))]
    assert list(weight_matrices(model, ["blocks.2.attn.qkv.weight", "head"])) == ["blocks.2.attn.qkv", "head"]
    assert list(weight_matrices(model, ["qkv.v"], split_qkv=True)) == [f"blocks.{i}.attn.qkv.v" for i in range(3)]
    for wrong, near in ((["attn.qvk"], "attn.qkv"), (["attn.qkv.q"], "attn.qkv"), (["mlp.fc3"], "mlp.fc"), ([], "no targ")):
        with pytest.raises(AnalysisError, match=near):
            weight_matrices(model, wrong)


def test_types_and_layers_of_names() -> None:
    assert (kind_of("blocks.3.attn.qkv.q"), layer_of("blocks.3.attn.qkv.q")) == ("attn.qkv.q", "blocks.3")
    assert (kind_of("head"), layer_of("head")) == ("head", "head")
    assert kind_of("layers.0.blocks.1.mlp.fc1") == "mlp.fc1"
