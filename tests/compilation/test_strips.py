"""What is kept in columns of a result that nothing has written yet: bytes, work, and the same bits in C as without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compilation.regions import plan
from compilation.regions.nest import NoNestError
from compilation.regions.region import Region
from compilation.regions.search import options
from compilation.regions.text import text
from compilation.target import HOST
from tests.compilation.nest_library import build, code, run
from tests.compilation.nests import Case
from tests.compilation.test_regions import regions, site_of

SMALL = (197, 384, 6, 1536)     # tokens, features, heads, hidden features of ViT-Small


def attention(*sizes: int) -> Region:
    return regions(*sizes)[0]


def test_queries_wait_in_the_columns_of_the_next_head() -> None:
    """Keys and values in blocks of 13: what else there is are two vectors of state, a token and its query."""
    region = attention(*SMALL)
    site = site_of(region, ["y"], [], {})
    every = options(lambda split: plan._statements(region, site, split), HOST)
    fastest = min(o.macs for o in every)
    best = min((o for o in every if o.macs <= 1.5 * fastest), key=lambda o: o.scratch)
    assert (best.schedule, best.scratch) == ("h/1 m/13 n/1 m/1 rows wait", 4 * (2 * 13 * 64 + 2 * 197 + 384 + 64))
    without = min(o.scratch for o in every if o.macs <= 1.5 * fastest and not {"wait", "store"} & set(o.schedule.split()))
    assert without == 4 * (2 * 66 * 64 + 2 * 197 + 384 + 64)
    kept = min(o.scratch for o in every if o.macs == fastest)       # queries in scratch: no work is lost
    assert kept == 4 * (197 * 64 + 2 * 64 + 2 * 197 + 384)


def test_it_reads_as_text() -> None:
    region = attention(9, 8, 2, 12)
    lines = text(plan.nest(region, site_of(region, ["y"], [], {}), "h/1 m/5 n/1 m/1 rows wait"))
    assert "  linear_1: f32[9, 4] rows in y[h*4+4:+4]\n" in lines
    assert "  for h in 0 to 1 of 2 by 1:\n" in lines and "  for h1 in 1 to 2 of 2 by 1:\n" in lines


@pytest.mark.parametrize("schedule", ["h/2 m/5 n/4 m/4 rows wait", "h/1 m/5 n/4 m/4 wait", "h/1 n/4 m/4 rows wait"])
def test_nothing_waits(schedule: str) -> None:
    """One tile has no next one; a result that is summed over heads has no columns of theirs; all keys at once need none."""
    region = attention(9, 8, 2, 12)
    with pytest.raises(NoNestError):
        plan.layout(region, site_of(region, ["y"], [], {}), schedule)


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_where_a_query_stands_changes_no_bit(tokens: int, tmp_path: Path) -> None:
    region = attention(37, 24, 3, 16)
    site = site_of(region, ["y"], [], {})
    rng = np.random.default_rng(0)
    inputs = {s.name: rng.normal(size=site.shapes[s.name]).astype(np.float32).astype(np.float64) for s in region.inputs}
    case = Case(plan.nest(region, site), inputs, region.reference(inputs, {}))
    nests = {word or "again": plan.nest(region, site, f"h/1 m/16 n/{tokens} m/{tokens} rows {word}".strip())
             for word in ("", "store", "wait")}
    codes = {n: code(n, case, nest) for n, nest in nests.items()}
    library = build(tmp_path, codes)
    made = {n: run(library, n, codes[n], case, nest) for n, nest in nests.items()}
    for n, (values, macs) in made.items():
        schedule = f"h/1 m/16 n/{tokens} m/{tokens} rows {n}".removesuffix(" again")
        assert macs == plan.layout(region, site, schedule).work(HOST)[0]
        np.testing.assert_allclose(values["y"], case.expected["y"], rtol=0, atol=1e-5 * np.abs(case.expected["y"]).max())
        np.testing.assert_array_equal(values["y"], made["again"][0]["y"])
