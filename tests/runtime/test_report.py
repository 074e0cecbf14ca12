"""The report, the summary and the command that checks a run folder again."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from algorithm.training.trace import FORMAT, Trace
from runtime.__main__ import main
from runtime.errors import ReportError
from runtime.report import RunReport, console_table, write_report
from runtime.report.figures import Series, compact_bytes, line_chart, memory_picture, smooth, ticks
from runtime.simulator import Simulator
from runtime.validate import replay
from tests.runtime import toy
from tests.runtime.test_validate import record

KEYS = {
    "budget_bytes", "ram_planned_bytes", "ram_measured_bytes", "arena_bytes", "arena_lower_bound_bytes", "flash_bytes",
    "macs_per_step", "trained_parameters", "plan", "accuracy_before", "accuracy_after", "trace_steps",
    "loss_max_rel_error", "weight_max_abs_error", "loss_max_rel_error_float32", "weight_max_abs_error_float32",
    "slower_estimated", "verdict", "validated", "trained_tensors", "tensors_right", "tensors_resolved"}


@pytest.fixture
def report(toy_simulator: Simulator) -> RunReport:
    trace = record(8)
    measured = toy_simulator.measure(trace.images[0], int(trace.labels[0]))
    return RunReport("a <toy> run", toy_simulator.program, measured, replay(toy_simulator, trace), 52, 12,
                     {"parameters": {"fc.weight": {"cols": [1, 4]}, "fc.bias": "all"}}, 5000, 0.1, 0.625,
                     training_losses=[2.0, 1.5, 1.0], macs_without_recompute=16, slower=2.5,
                     frontier=[{"ram_bytes": 4264, "macs": 32, "trained_parameters": 12, "label": "a", "chosen": True},
                               {"ram_bytes": 4200, "macs": 40, "trained_parameters": 4, "label": "other"}])


def test_report_is_self_contained_and_says_what_was_measured(report: RunReport, tmp_path: Path) -> None:
    console = Console(record=True, width=160, file=open("/dev/null", "w"))  # noqa: SIM115
    page = write_report(tmp_path / "run", report).read_text()
    console.print(console_table(report))
    assert not re.search(r"(src|href)\s*=|https?://|@import|url\(", page), "the report reaches for the network"
    assert "a &lt;toy&gt; run" in page and "62.5 %" in page and "4,264" in page and "proven equal" in page
    assert "2 of 6 columns" in page
    for picture in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(picture)
    table = console.export_text()
    assert "2.00 x without recompute, estimated time 2.50 x" in table
    assert "4,264 bytes = planned" in table and "proven equal to PyTorch" in table
    assert not list((tmp_path / "run").glob("*.new"))


def test_summary_has_the_agreed_keys(report: RunReport, tmp_path: Path) -> None:
    write_report(tmp_path, report)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) >= KEYS
    assert summary["ram_planned_bytes"] == summary["ram_measured_bytes"] == 4264
    assert summary["trace_steps"] == 8 and summary["accuracy_after"] == 0.625 and summary["macs_per_step"] == 32


def test_a_read_only_folder_is_one_clear_error(report: RunReport, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ReportError, match=r"cannot write to .*choose another"):
        write_report(tmp_path / "file", report)


def test_memory_picture_draws_every_buffer_at_its_place() -> None:
    program = toy.program("cols", 0.5)
    root = ET.fromstring(memory_picture(program, 5000))
    titles = [t.text or "" for t in root.iter() if t.tag.endswith("title")]
    for name in ("image (input)", "label (input)", "d_logits (gradient)", "sum (scratch)"):
        assert sum(t.startswith(name) for t in titles) == 1, name
    assert "to call 2 toy_dense_grad fc" in next(t for t in titles if t.startswith("image"))
    widths = {g.findtext("title", "").split(" ")[0]: float(r.get("width", "nan"))
              for g in root.iter("g") if (r := g.find("rect")) is not None}
    assert widths["image"] == pytest.approx(3 * widths["sum"], rel=1e-3)
    assert "budget 5,000 bytes" in ET.tostring(root, encoding="unicode")


def test_charts_survive_what_runs_produce() -> None:
    for values in ([1.0], [0.0, 0.0], [float("nan"), 1.0], [3.0, 1e-9]):
        ET.fromstring(line_chart([Series("a", values, "line-c")], "x", "y"))
        ET.fromstring(line_chart([Series("a", values, "dot-c", points=True)], "x", "y", log=True))
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert smooth([1.0, 3.0, 5.0], 2) == [1.0, 2.0, 4.0]
    assert [compact_bytes(v) for v in (12, 1500, 2e6)] == ["12 B", "1.5 kB", "2 MB"]


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of the toy, whose operations are not in the registry: its Program is read without the verifier."""
    program, trace = toy.program("cols", 0.5), record()
    monkeypatch.setattr("runtime.prove.read_program", lambda path: program)
    toy.write(program, tmp_path / "run/c", tmp_path / "kernels")
    (tmp_path / "run/program.json").write_text(program.to_json())
    fields = {**vars(trace), "labels": trace.labels.astype(np.int64), "metadata": {**trace.metadata, "format": FORMAT}}
    Trace(**fields).save(tmp_path / "run/trace.safetensors")
    return tmp_path / "run"


def test_command_proves_a_run_folder(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_folder), "--builds"]) == 0
    out = capsys.readouterr().out
    assert "proven:" in out and "same bits" in out and "OTHER" not in out
    assert main([str(run_folder), "--steps", "3"]) == 0
    out = capsys.readouterr().out
    assert "the losses agree over 3 steps" in out and "proven:" not in out


def test_command_notices_tampered_code(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = run_folder / "c/vit_train.c"
    source.write_text(source.read_text().replace(".gain = 0.01f", ".gain = 0.010001f"))
    assert main([str(run_folder)]) == 1
    assert "not proven" in capsys.readouterr().out


def test_command_says_what_is_missing(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_folder / "program.json").unlink()
    assert main([str(run_folder)]) == 2
    assert "program.json is missing" in capsys.readouterr().err
