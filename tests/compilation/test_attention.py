"""Attention on windows: queries, keys and heads in tiles, with carried state, against the whole operation."""

from __future__ import annotations

import ctypes as ct

import numpy as np
import pytest

from compilation.ops import REGISTRY, Site
from compilation.ops.base import Arrays
from tests.compilation.kernel_library import In, Out, Step, build, structures

HEADS, D, E, N, M = 3, 5, 4, 13, 37
STATE = ("high", "total", "delta")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ct.CDLL:
    return build(tmp_path_factory.mktemp("kernels"), "-O3", "-march=native")


@pytest.fixture
def given() -> Arrays:
    rng = np.random.default_rng(4)
    shapes = {"q": (N, HEADS * D), "k": (M, HEADS * D), "v": (M, HEADS * E), "dy": (N, HEADS * E)}
    return {s: rng.normal(0, 1.5, shape).astype(np.float32) for s, shape in shapes.items()}


def panel(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.T).T


def call(library: ct.CDLL, name: str, windows: Arrays, adds: bool = False, first: int = 1, last: int = 1) -> None:
    """One call on these windows (views of float32 arrays) of the slots, inputs and outputs alike."""
    op = REGISTRY[name]
    args = structures()[f"{op.symbol}_args"]()
    kinds = dict(args._fields_)
    for slot, view in windows.items():
        at = (view.ctypes.data, *(s // 4 for s in view.strides))
        setattr(args, slot, In(*at) if kinds[slot] is In else Out(*at, int(adds and slot in op.adds)))
    heads = windows["q"].shape[1] // D
    site = Site({s.name: windows[s.name].shape for s in op.inputs if s.name in windows}, {"heads": heads},
                frozenset(s.name for s in op.outputs if s.name in windows))
    for field, value in {**op.dims(site), **({"first": first, "last": last} if op.carried else {})}.items():
        setattr(args, field, value)
    scratch = np.full(op.scratch(site) // 4 + 4, 7.0, np.float32)
    args.scratch = scratch.ctypes.data
    getattr(library, op.symbol)(ct.byref(args), ct.byref(Step(0.0, 0.0, None)))
    assert (scratch[-4:] == 7.0).all()


def cut(n: int, step: int) -> list[slice]:
    return [slice(i, min(n, i + step)) for i in range(0, n, step)]


def heads_of(value: np.ndarray, heads: slice) -> np.ndarray:
    """The columns of some heads."""
    size = value.shape[1] // HEADS
    return value[:, heads.start * size:heads.stop * size]


def forward(library: ct.CDLL, given: Arrays, n: int, m: int, h: int) -> np.ndarray:
    y = np.full((N, HEADS * E), np.nan, np.float32)
    for rows in cut(N, n):
        for heads in cut(HEADS, h):
            q, out = given["q"][rows], heads_of(y[rows], heads)
            state = {s: np.full((rows.stop - rows.start, HEADS), np.nan, np.float32)[:, heads] for s in STATE[:2]}
            for keys in cut(M, m):
                windows = {"q": heads_of(q, heads), "k": heads_of(given["k"][keys], heads),
                           "v": heads_of(given["v"][keys], heads), "y": out, **(state if m < M else {})}
                call(library, "attention", windows, first=int(keys.start == 0), last=int(keys.stop == M))
    return y


def statistics(library: ct.CDLL, given: Arrays, m: int) -> Arrays:
    made = {s: np.full((N, HEADS), np.nan, np.float32) for s in STATE}
    for keys in cut(M, m):
        windows = {**given, "k": given["k"][keys], "v": given["v"][keys], "dy": panel(given["dy"]), **made}
        call(library, "attention_statistics", windows, first=int(keys.start == 0), last=int(keys.stop == M))
    return made


def backward(library: ct.CDLL, given: Arrays, state: Arrays, n: int, m: int, h: int) -> Arrays:
    made = {f"d_{s}": np.full(given[s].shape, np.nan, np.float32) for s in ("q", "k", "v")}
    made["y"] = np.full(given["dy"].shape, np.nan, np.float32)
    tiled = n < N or m < M
    for value in made.values():
        value[...] = 0.0 if tiled else np.nan
    for rows in cut(N, n):
        for keys in cut(M, m):
            for heads in cut(HEADS, h):
                along = {"q": rows, "dy": rows, "y": rows, "d_q": rows, "k": keys, "v": keys, "d_k": keys, "d_v": keys}
                windows = {s: heads_of(v[along[s]], heads) for s, v in {**given, **made}.items()}
                windows |= {s: v[rows, heads] for s, v in state.items()}
                call(library, "attention_grad", windows, adds=tiled)
    return made


TILES = [(4, M, HEADS), (1, M, 1), (N, 16, HEADS), (5, 32, 2), (N, 7, 1), (3, 1, HEADS)]


@pytest.mark.parametrize(("n", "m", "h"), TILES)
def test_tiles_of_the_forward_pass_are_the_whole(library: ct.CDLL, given: Arrays, n: int, m: int, h: int) -> None:
    """Bit for bit where the keys come in sixteens, as in one call; else to rounding."""
    whole, tiled = forward(library, given, N, M, HEADS), forward(library, given, n, m, h)
    if m % 16 == 0 or m == M:
        np.testing.assert_array_equal(tiled, whole)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=2e-6)


@pytest.mark.parametrize("m", [1, 7, 16, 32])
def test_statistics_are_carried_from_keys_to_keys(library: ct.CDLL, given: Arrays, m: int) -> None:
    whole, tiled = statistics(library, given, M), statistics(library, given, m)
    for s in STATE:
        if m % 16 == 0:
            np.testing.assert_array_equal(tiled[s], whole[s])
        np.testing.assert_allclose(tiled[s], whole[s], rtol=3e-6, atol=1e-5, err_msg=s)


@pytest.mark.parametrize(("n", "m", "h"), TILES)
def test_tiles_of_the_gradient_add_up_to_the_whole(library: ct.CDLL, given: Arrays, n: int, m: int, h: int) -> None:
    state = statistics(library, given, M)
    whole, tiled = backward(library, given, state, N, M, HEADS), backward(library, given, state, n, m, h)
    for s, v in whole.items():
        assert np.isfinite(v).all()
        np.testing.assert_allclose(tiled[s], v, rtol=0, atol=3e-6 * np.abs(v).max(), err_msg=s)
    np.testing.assert_allclose(whole["y"], forward(library, given, N, M, HEADS), rtol=0, atol=2e-6)
