"""The benchmark of schemes: every row once, kept and gone on from, and a table that says the drop."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import schemes

COST = {"budget": "2mb", "budget_bytes": 2_000_000, "img_size": 224, "needs_bytes": 3_219_132, "taken": "less",
        "kept": ["head.weight", "head.bias", "blocks.11.attn.proj.bias"], "ram_bytes": 1_999_000, "flash_bytes": 86_000_000}


def test_rows_are_kept_and_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def accuracy(rule: Any, kept: Any, size: int, seed: int, overrides: list[str]) -> dict[str, Any]:
        asked.append((rule.count if rule.enable_backward_config else "full", kept, size, seed))
        return {"after": {"full": 0.75}.get(asked[-1][0], 0.5 if kept is None else 0.625)}
    monkeypatch.setattr(schemes, "memory", lambda name: COST)
    monkeypatch.setattr(schemes, "accuracy", accuracy)
    path = tmp_path / "rows.json"
    table = schemes.run(schemes.Rows(path, []), ["vit_small_2mb"], [0, 1], [])
    assert asked == [(what, kept, 98, seed) for seed in (0, 1)
                     for what, kept in (("full", None), ("layers", None), ("layers", COST["kept"]))]
    out = io.StringIO()
    Console(file=out, width=200).print(table)
    row = next(line for line in out.getvalue().splitlines() if "vit_small_2mb" in line)
    assert all(text in row for text in ("8 attention+head", "25 %", "3,219,132", "1 of 8", "75.0 (75.0, 75.0)",
                                        "25.0 (50.0, 50.0)", "12.5 (62.5, 62.5)"))
    asked.clear()
    again = schemes.Rows(path, [])
    schemes.run(again, ["vit_small_2mb"], [0, 1, 2], [])
    assert {seed for *_, seed in asked} == {2} and json.loads(path.read_text())["rows"] == again.done


def test_what_cannot_be_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"settings": ["train.epochs=9"], "rows": {}}))
    assert schemes.main(["--json", str(tmp_path / "rows.json")]) == 2
    assert "holds rows of other settings (train.epochs=9)" in capsys.readouterr().err
    assert schemes.main(["--only", "3mb"]) == 2
    assert "no scheme is called '3mb'" in capsys.readouterr().err
