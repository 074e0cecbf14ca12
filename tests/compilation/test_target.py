"""Estimated time: what tiles cost, and that the search minimises it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compilation.ops import REGISTRY
from compilation.ops.base import Site
from compilation.pipeline import Compiler
from compilation.regions import plan
from compilation.regions.search import Option, options, pruned
from compilation.target import CORTEX_M, HOST, TARGETS, TILES, Target
from runtime.codegen.generate import KERNELS, check_tiles
from runtime.errors import CodegenError
from tests.compilation.models import IMAGE
from tests.compilation.test_gradients import vit


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_wider_tiles_are_never_slower(target: Target) -> None:
    steps = np.array(TILES)
    times = target.product((np.full(len(steps), 192), steps), (64, 8))
    assert times[0] == 1.0 and list(times) == sorted(times)
    assert target.product((1, 1), (1, 1)) == target.lanes[0][1] * target.rows[0][1]


def test_odd_ends_take_the_cheapest_tiles() -> None:
    """37 in tiles of 16: two full ones, and five in one of eight."""
    assert HOST.product((37, 16), (8, 8)) == pytest.approx((2 * 16 + 8 * 1.5) / 37)
    assert CORTEX_M.product((5, 16), (4, 4)) == pytest.approx((4 * 1.03 + 1.95) / 5)


def test_a_product_of_one_token_takes_longer_for_each() -> None:
    def time(n: int) -> int:
        shapes = {"x": (n, 64), "w": (32, 64), "b": (32,)}
        return REGISTRY["linear"].time(Site(shapes, {}, frozenset({"y"})), CORTEX_M)
    assert 1.5 < time(1) * 16 / time(16) < 8


def test_more_scratch_has_to_be_worth_its_bytes() -> None:
    options = [Option(name, scratch, 0, time, frozenset()) for name, scratch, time in (
        ("fast", 900, 1000), ("as fast", 800, 1001), ("slower", 700, 1020), ("both worse", 750, 1030), ("small", 10, 5000))]
    assert [o.schedule for o in pruned(options)] == ["as fast", "slower", "small"]


def test_kernels_tiled_otherwise_are_refused(tmp_path: Path) -> None:
    names = [p.name for p in KERNELS.glob("*.h")]
    check_tiles(names, KERNELS)
    text = (KERNELS / "vt_attend.h").read_text()
    assert "VT_KEYS = 16" in text and "VT_QUERIES = 16" in text
    (tmp_path / "vt_attend.h").write_text(text.replace("VT_KEYS = 16", "VT_KEYS = 8"))
    with pytest.raises(CodegenError, match=r"vt_attend.h has VT_KEYS = 8.* 16"):
        check_tiles(["vt_attend.h"], tmp_path)


def test_equal_blocks_are_searched_and_differentiated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However deep a model is, its regions are as many."""
    counts = []
    for depth in (3, 5):
        tried: list[int] = []

        def counted(*arguments: Any, tried: list[int] = tried) -> list[Option]:
            found = options(*arguments)
            tried.append(len(found))
            return found
        monkeypatch.setattr(plan, "options", counted)
        monkeypatch.setattr(plan, "_SPACES", {})
        compiler = Compiler(vit(depth=depth), IMAGE)
        compiled = compiler.compile({n: "all" for n in compiler.shapes if "bias" in n}, 30_000)
        counts.append((len(tried), len(compiled.program.regions)))
    assert counts[0] == counts[1] and counts[0][0] >= counts[0][1] > 0
