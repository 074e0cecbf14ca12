"""The benchmark of the verdict: its planted faults apply to the project as it is, and its figures add up."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.verdict.__main__ import summarise
from benchmarks.verdict.mutations import MUTATIONS, Mutation
from benchmarks.verdict.planted import MutationError, planted

ROOT = Path(__file__).resolve().parents[2]


def test_every_planted_fault_applies_once() -> None:
    wrong = {m.name: n for m in MUTATIONS if (n := (ROOT / m.file).read_text().count(m.old)) != 1}
    assert wrong == {}
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS) >= 40
    assert all(m.old != m.new for m in MUTATIONS)


def test_a_fault_is_taken_out_again_and_one_that_does_not_apply_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("x = 1; y = 1;")
    with planted(tmp_path, Mutation("m", "a.c", "x = 1", "x = 2", "full")):
        assert (tmp_path / "a.c").read_text() == "x = 2; y = 1;"
    assert (tmp_path / "a.c").read_text() == "x = 1; y = 1;"
    with pytest.raises(MutationError, match="2 times"), planted(tmp_path, Mutation("m", "a.c", "= 1", "= 2", "full")):
        pass


def test_what_is_not_proven_counts_against_the_verdict() -> None:
    shares = {"loss": 0.1, "largest": 0.2, "rms": 0.3, "along": 0.4}
    runs = [{"case": "a", "outcome": o, **shares} for o in ("proven", "differs", "chaotic")]
    faults = [{"caught": True, "caught_by_test": True}, {"caught": False}]
    result = summarise(runs, faults)
    assert (result["runs"], result["false_alarms"], result["not_proven"]) == (3, 1, 2)
    assert (result["planted"], result["caught"], result["caught_by_tests"]) == (2, 1, 1)
    assert result["largest_share_of_allowed"] == shares
