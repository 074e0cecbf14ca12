"""The benchmark of update plans: every cell once, gone on from, and a page whose table is what the file says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from algorithm.config import RunConfig
from algorithm.sparse import PlanConfig
from benchmarks import results
from benchmarks.results import BEGIN, END, SCHEMES, Scheme

FEW = {name: SCHEMES[name] for name in ("head", "bias+LN, all blocks")}
COST = {"ram": 650_000, "macs": 4_200_000_000, "macs_without_recompute": 4_000_000_000}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The configurations that were trained; the accuracy tells seed and learning rate."""
    seen: list[RunConfig] = []

    def run_cell(config: RunConfig, scheme: Scheme) -> dict[str, Any]:
        seen.append(config)
        return {"accuracy": 0.5 + 0.125 * config.data.seed, "loss": 1.0, "trained": int(1e6 * scheme.lr)}
    monkeypatch.setattr(results, "SCHEMES", FEW)
    monkeypatch.setattr(results, "run_cell", run_cell)
    monkeypatch.setattr(results, "device_cost", lambda config, scheme: COST)
    return seen


def test_every_cell_once_and_gone_on_from(tmp_path: Path, asked: list[RunConfig]) -> None:
    path = tmp_path / "r.jsonl"
    command = ["--json", str(path), "--folder", f"mine={tmp_path}"]
    assert results.main([*command, "--seeds", "0", "--only", "mine"]) == 0
    assert [(c.data.data_root, c.train.lr) for c in asked] == [(str(tmp_path), s.lr) for s in FEW.values()]
    assert results.main([*command, "--seeds", "0,2"]) == 0
    assert len(asked) == 8 and len({(c.data.name, c.train.lr, c.train.seed) for c in asked}) == 8
    assert all(c.train.seed == c.data.seed == c.model.seed for c in asked)
    assert {(c.train.epochs, c.train.schedule, c.train.augment) for c in asked} == {(6, "cosine", "off")}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum("ram" in r for r in rows) == 2 and sum("task" in r for r in rows) == 8
    assert results.main([*command, "--seeds", "0,2"]) == 0 and len(asked) == 8


def test_the_page_says_what_the_file_does(tmp_path: Path, asked: list[RunConfig]) -> None:
    path, page = tmp_path / "r.jsonl", tmp_path / "results.md"
    page.write_text(f"before\n{BEGIN}an older table\n{END}after\n")
    assert results.main(["--json", str(path), "--seeds", "0,1"]) == 0
    for _ in range(2):
        assert results.main(["--json", str(path), "--write", str(tmp_path)]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}| what is trained") and text.endswith(f"{END}after\n")
    assert "| head | 3,000 | 650,000 | 4,200 | 56.2 (50.0, 62.5) | 56.2 |" in text and "older" not in text
    assert (tmp_path / "results.svg").read_text().count("<svg") == 1 and len(asked) == 4
    page.write_text("no marks")
    with pytest.raises(ValueError, match="has no place for the table"):
        results.main(["--json", str(path), "--write", str(tmp_path)])
    assert results.main(["--json", str(path), "--folder", "mine"]) == 2


def test_every_scheme_is_one_that_the_model_has() -> None:
    """Names of the plan and of the model's additions; what they train is read where they are run."""
    for scheme in SCHEMES.values():
        config = results.config_of(dict(results.TASKS["fashion-mnist"]), scheme, 1, [])
        assert PlanConfig(**scheme.plan).n_gram_update in (0, 1, 2) and config.train.lr == scheme.lr
        assert bool(PlanConfig(**scheme.plan).n_gram_update) == config.model.gram.enabled
        assert bool(PlanConfig(**scheme.plan).n_lora_update) == config.model.lora.enabled
