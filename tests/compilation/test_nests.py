"""Nests written by hand compute what whole tensors do, and the judge passes them."""

from __future__ import annotations

import ctypes as ct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compilation.regions.judge import judge
from compilation.regions.run import run as nest_run
from compilation.regions.text import text
from tests.compilation import nests
from tests.compilation.nest_library import build, code, run
from tests.compilation.nests import Case

COLS = {"w1": ("cols", [0, 5, 23]), "w2": ("cols", [3, 16, 17, 39])}
ROWS = {"w1": ("rows", [2, 17, 39]), "w2": ("rows", [0, 23])}
CASES: dict[str, Callable[[], Case]] = {
    "mlp": nests.mlp,
    "mlp, even tiles": lambda: nests.mlp(32, 24, 32, 16, 16),
    "mlp, one tile": lambda: nests.mlp(7, 8, 12, 7, 12),
    "mlp gradient": nests.mlp_gradient,
    "mlp gradient, columns": lambda: nests.mlp_gradient(parts=COLS),
    "mlp gradient, rows": lambda: nests.mlp_gradient(parts=ROWS),
    "attention": nests.attention,
    "attention, keys in tiles": lambda: nests.attention(tm=10),
    "a strip of the result": nests.waiting,
    "a strip, two tiles": lambda: nests.waiting(tiles=2),
}
every = pytest.mark.parametrize("name", CASES)


@every
@pytest.mark.parametrize("one_scratch", [False, True])
def test_a_nest_is_its_definition(name: str, one_scratch: bool) -> None:
    case = CASES[name]()
    made = nest_run(case.nest, case.inputs, case.outputs, case.parts, one_scratch=one_scratch)
    assert made.keys() == case.expected.keys()
    for slot, value in case.expected.items():
        np.testing.assert_allclose(made[slot], value, rtol=0, atol=1e-12, err_msg=slot)


@every
def test_the_judge_passes_it(name: str) -> None:
    case = CASES[name]()
    judge(case.nest, case.shapes, case.outputs, case.trained, case.updates)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ct.CDLL:
    """Every case in C."""
    codes = {}
    for n, make in enumerate(CASES.values()):
        case = make()
        codes[f"nest_{n}"] = code(f"nest_{n}", case, case.nest)
    return build(tmp_path_factory.mktemp("nests"), codes)


@every
def test_c_is_the_definition_in_float32(name: str, library: ct.CDLL) -> None:
    case, n = CASES[name](), list(CASES).index(name)
    case.inputs.update({s: v.astype(np.float32).astype(np.float64) for s, v in case.inputs.items()})
    expected = nest_run(case.nest, case.inputs, case.outputs, case.parts)
    made, macs = run(library, f"nest_{n}", code(f"nest_{n}", case, case.nest), case, case.nest)
    assert macs > 0
    for slot, value in expected.items():
        limit = 1e-5 * np.abs(value).max() + 2e-7 * np.abs(case.inputs.get(slot.removeprefix("d_"), np.zeros(1))).max()
        np.testing.assert_allclose(made[slot].reshape(value.shape), value, rtol=0, atol=limit, err_msg=slot)


@pytest.mark.parametrize(("make", "tiles", "slots"), [
    (nests.mlp, (16, 40), ("y",)),
    (nests.mlp_gradient, (16, 40), ("d_x", "d_w2")),                    # tokens in tiles: sums over features are whole
    (nests.mlp_gradient, (37, 16), ("d_w1", "d_b1", "d_w2")),           # features in tiles: sums over tokens are whole
], ids=str)
def test_where_no_sum_is_cut_tiles_are_whole_kernels_bit_for_bit(
        make: Callable[..., Case], tiles: tuple[int, int], slots: tuple[str, ...], tmp_path: Path) -> None:
    case = make(37, 24, 40, *tiles)
    assert case.whole is not None
    both = {"tiled": case.nest, "whole": case.whole}
    codes = {n: code(n, case, nest) for n, nest in both.items()}
    library = build(tmp_path, codes)
    (tiled, macs), (whole, all_macs) = (run(library, n, codes[n], case, nest) for n, nest in both.items())
    assert macs == all_macs
    for slot in slots:
        np.testing.assert_array_equal(tiled[slot], whole[slot], err_msg=slot)


def test_a_nest_reads_as_text() -> None:
    expected = """\
nest, 3,584 bytes of scratch
  a: f32[16, 24] panel @0
  u: f32[16, 8] panel @1536
  g: f32[16, 8] panel @1536
  s: f32[16, 24] panel @2048
  for n in 37 by 16:
    layer_norm(x=x[n:+16, :24], gamma=gamma[:24], beta=beta[:24]) -> (y=a[:16@n, :24]) {eps=1e-06, heads=1} # norm
    for h in 40 by 8:
      linear(x=a[:16@n, :24], w=w1[h:+8, :24], b=b1[h:+8]) -> (y=u[:16@n, :8@h]) # mlp.fc1
      gelu(x=u[:16@n, :8@h]) -> (y=g[:16@n, :8@h]) {tanh=0} # mlp.act
      linear(x=g[:16@n, :8@h], w=w2[:24, h:+8], b=b2[:24]) -> (y+(h)=s[:16@n, :24]) # mlp.fc2
    add(a=x[n:+16, :24], b=s[:16@n, :24]) -> (y=y[n:+16, :24])
"""
    assert text(nests.mlp(th=8).nest) == expected
