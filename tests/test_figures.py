"""Golden figures: what a comparison refuses, and what a refresh writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.figures import Entry, Figures


def compare(folder: Path, bytes_now: int, refresh: bool) -> Entry:
    def law(golden: Entry) -> None:
        assert bytes_now <= golden["bytes"]

    Figures(folder, refresh).compare("a.json", "row", {"bytes": bytes_now}, law, marks={"kept": True})
    return Figures(folder, False).read("a.json")["row"]


def test_figures_only_improve_and_marks_made_by_hand_stay(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="--update-golden"):
        compare(tmp_path, 10, refresh=False)
    assert compare(tmp_path, 10, refresh=True) == {"kept": True, "bytes": 10}
    (tmp_path / "a.json").write_text(json.dumps({"row": {"kept": False, "bytes": 10}}))
    assert compare(tmp_path, 9, refresh=False) == {"kept": False, "bytes": 10}
    assert compare(tmp_path, 9, refresh=True) == {"kept": False, "bytes": 9}
    for refresh in (False, True):
        with pytest.raises(AssertionError):
            compare(tmp_path, 10, refresh)
    assert compare(tmp_path, 9, refresh=False) == {"kept": False, "bytes": 9}
