"""Nests written by hand compute what whole tensors do, and the judge passes them."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from compilation.regions.judge import judge
from compilation.regions.run import run
from tests.compilation import nests
from tests.compilation.nests import Case

COLS, ROWS_ = {"w1": ("cols", [0, 5, 23]), "w2": ("cols", [3, 16, 17, 39])}, {"w1": ("rows", [2, 17, 39]), "w2": ("rows", [0, 23])}
CASES: dict[str, Callable[[], Case]] = {
    "mlp": nests.mlp,
    "mlp, even tiles": lambda: nests.mlp(32, 24, 32, 16, 16),
    "mlp, one tile": lambda: nests.mlp(7, 8, 12, 7, 12),
    "mlp gradient": nests.mlp_gradient,
    "mlp gradient, columns": lambda: nests.mlp_gradient(parts=COLS),
    "mlp gradient, rows": lambda: nests.mlp_gradient(parts=ROWS_),
    "attention": nests.attention,
    "attention, keys in tiles": lambda: nests.attention(tm=10),
}
every = pytest.mark.parametrize("name", CASES)


@every
@pytest.mark.parametrize("one_scratch", [False, True])
def test_a_nest_is_its_definition(name: str, one_scratch: bool) -> None:
    case = CASES[name]()
    made = run(case.nest, case.inputs, case.outputs, case.parts, one_scratch=one_scratch)
    assert made.keys() == case.expected.keys()
    for slot, value in case.expected.items():
        np.testing.assert_allclose(made[slot], value, rtol=0, atol=1e-12, err_msg=slot)


@every
def test_the_judge_passes_it(name: str) -> None:
    case = CASES[name]()
    judge(case.nest, case.shapes, case.outputs, case.trained, case.updates)
