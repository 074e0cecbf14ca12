"""The main job as a user has it: what it does to folders, when it is stopped, resumed, repeated, or cannot go on."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import run_vit_training
from algorithm.errors import AlgorithmError
from algorithm.monitor import Monitor
from algorithm.training.checkpoint import read_safetensors
from runtime import validate
from runtime.errors import SimulationError
from runtime.folder import TRAINING
from runtime.simulator import Simulator

SMALL = ["--memory_budget", "300kb", "--data", "digits", "--weights", "none", "--img_size", "32", "--patch_size", "8",
         "--model", "vit_tiny_patch16_224", "model.extra={embed_dim: 48, depth: 2, num_heads: 3}", "model.head_init=timm",
         "model.gram.enabled=false", "--images_per_class", "1", "--test_images", "20", "--epochs", "2", "--trace_steps", "3",
         "--lr", "0.01"]
STEPS = 20                  # one image a class, ten classes, two epochs
Job = Callable[..., int]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return lambda *more, name="run": run_vit_training.main([*SMALL, "--output", str(tmp_path), "--name", name, *more])


def steps_of(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    log = Monitor.log

    def stopping(self: Monitor, now: int, **values: Any) -> None:
        log(self, now, **values)
        if now == step:
            raise error
    monkeypatch.setattr(Monitor, "log", stopping)


def test_the_stages_are_timed_and_the_proof_runs_beside_the_training(job: Job, tmp_path: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    assert job() == 0
    out = capsys.readouterr()
    stages = json.loads((tmp_path / "run/summary.json").read_text())["stages"]
    assert {"model", "data", "plan", "compile", "fine-tuning", "accuracy after", "trace", "build", "measure", "replay",
            "Pareto front"} <= set(stages)
    assert all(seconds >= 0 for seconds in stages.values())
    assert "replay (beside)" in out.err and "fine-tuning (beside)" not in out.err
    assert "proven" in out.err and "proven" in out.out
    assert steps_of(tmp_path / "run") == list(range(STEPS))


def test_names_are_no_markup(job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "[red] a [bold]name [1]"
    assert job(name=name) == job(name=name) == 0
    assert name in capsys.readouterr().out and (tmp_path / name / "report.html").is_file()


def test_a_folder_of_the_users_is_refused_before_any_work(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                         capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("algorithm.models.vit.build_model", None)       # any work would fail on it
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/a.tex").write_text("x")
    assert job(name="thesis") == 1
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and "thesis" in message and "left alone" in message
    assert os.listdir(tmp_path) == ["thesis"] and (tmp_path / "thesis/a.tex").read_text() == "x"


def test_the_same_command_after_the_end_points_at_the_report(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture[str]) -> None:
    assert job() == 0
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    capsys.readouterr()
    monkeypatch.setattr("algorithm.models.vit.build_model", None)
    assert job() == 0
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    message = capsys.readouterr().err
    assert "finished" in message and "report.html" in message and "--fresh" in message

    summary = tmp_path / "run/summary.json"        # what was not proven does not become so by asking again
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "validated": False}))
    assert job() == 1
    assert "not proven" in capsys.readouterr().err


def test_fresh_trains_again_and_replaces(job: Job, tmp_path: Path) -> None:
    assert job() == 0
    first = (tmp_path / "run/.vit-run.json").read_text()
    assert job("--fresh") == 0
    assert (tmp_path / "run/.vit-run.json").read_text() != first
    assert steps_of(tmp_path / "run") == list(range(STEPS))
    assert sorted(os.listdir(tmp_path)) == ["latest", "run"]
    assert "fresh:" not in (tmp_path / "run/config.yaml").read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), AlgorithmError("no")], ids=["stop", "error"])
def test_a_stopped_run_goes_on_to_the_same_weights(error: BaseException, job: Job, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    assert job(name="whole") == 0
    with monkeypatch.context() as patch:
        stop_at(4, patch, error)
        assert job() == (130 if isinstance(error, KeyboardInterrupt) else 1)
    partial = tmp_path / ".run.partial"
    assert (partial / TRAINING).is_file() and not (tmp_path / "run").exists() and not (tmp_path / ".run.lock").exists()
    assert read_safetensors(partial / TRAINING)[1]["step"] == 5
    assert job() == 0
    assert steps_of(tmp_path / "run") == list(range(STEPS))
    whole, resumed = (read_safetensors(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "run"))
    assert all(whole[n].equal(resumed[n]) for n in whole) and set(whole) == set(resumed)


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "stopped"])
def test_more_epochs_go_on_where_the_training_was(finished: bool, job: Job, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    constant = "train.schedule=constant"        # a falling rate would fall otherwise from the first step on
    assert job("--epochs", "3", constant, name="whole") == 0
    with monkeypatch.context() as patch:
        if not finished:
            stop_at(4, patch, KeyboardInterrupt())
        assert job(constant) == (0 if finished else 130)
    taken: list[int] = []
    monkeypatch.setattr(Monitor, "log", lambda self, step, **values: taken.append(step))
    assert job("--epochs", "3", constant) == 0
    assert taken == list(range(STEPS if finished else 5, 30))
    whole, longer = (read_safetensors(tmp_path / name / "checkpoint.safetensors")[0] for name in ("whole", "run"))
    assert all(whole[n].equal(longer[n]) for n in whole)
    assert (tmp_path / "run.old-1/report.html").is_file() is finished


def test_an_error_beside_the_training_stops_it_promptly(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise SimulationError("the [red] C code misbehaved")
    with monkeypatch.context() as patch:
        patch.setattr(validate, "replay", broken)
        assert job("--epochs", "2000") == 1
    message = capsys.readouterr().err.splitlines()
    assert [line for line in message if "error:" in line] == ["error: the [red] C code misbehaved"]
    steps = read_safetensors(tmp_path / ".run.partial" / TRAINING)[1]["step"]
    assert 0 < steps < 20_000
    assert job("--epochs", "2000", "--steps", str(steps + 1)) == 0      # its training is not lost


def test_a_stop_while_the_proof_is_awaited_ends_it(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training ends before the replay does; the work beside does not hold up the stop."""
    replayed: list[int] = []
    step = Simulator.train_step

    def endless(simulator: Simulator, trace: Any, progress: Any) -> None:
        while True:
            step(simulator, trace.images[0], int(trace.labels[0]), 0.01)
            replayed.append(1)
            progress(1, 1)

    def stop(*_: Any, **__: Any) -> None:
        while not replayed:
            pass
        raise KeyboardInterrupt
    monkeypatch.setattr(validate, "replay", endless)
    monkeypatch.setattr("algorithm.training.save_model", stop)
    assert job() == 130
    assert (tmp_path / ".run.partial" / TRAINING).is_file()


@pytest.mark.parametrize("name", ["plan.yaml", "program.json", "c", "trace.safetensors", TRAINING, "metrics.jsonl"])
def test_a_damaged_file_of_a_stopped_run_is_no_wall(name: str, job: Job, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(12, patch, KeyboardInterrupt())
        assert job() == 130
    path = tmp_path / ".run.partial" / name
    if path.is_dir():
        (path / "vit_train.c").write_bytes(b"\xff\x00")
    else:
        path.write_bytes(b"\xff\x00 damaged")
    assert job() == 0
    assert (tmp_path / "run/report.html").is_file()


def test_a_full_disk_is_one_line(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                 capsys: pytest.CaptureFixture[str]) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "report.html")
    monkeypatch.setattr("runtime.report.write_report", full)
    assert job() == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1 and "No space left" in errors[0]
    assert (tmp_path / ".run.partial" / TRAINING).is_file()


def test_nobody_at_the_standard_output_costs_no_result(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")
    monkeypatch.setattr("sys.stdout", Gone())
    assert job() == 0
    assert (tmp_path / "run/report.html").is_file() and not (tmp_path / ".run.partial").exists()
    assert "cannot be printed" in capsys.readouterr().err


def test_the_nearest_plan_is_named_and_with_nearest_taken(job: Job, tmp_path: Path,
                                                          capsys: pytest.CaptureFixture[str]) -> None:
    """Refused with figures and the nearest; the same command with --nearest trains that, proven, and the report says so."""
    asked = ["--memory_budget", "60kb", "plan.rule={count: layers, layer_norm: false, n_bias_update: 4, n_weight_update: 4}"]
    assert job(*asked) == 2
    refused = capsys.readouterr().err.splitlines()[-1]
    assert "more than the budget of 60,000" in refused and "--nearest takes it" in refused
    assert job(*asked, "--nearest") == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    facts = summary["facts"]
    assert "100 % of the last 4 attention+mlp+head layers" in facts["plan asked for"]
    taken = facts["nearest plan, taken"].removesuffix(")")
    assert taken in refused and taken in (tmp_path / "run/report.html").read_text()
    assert summary["validated"] and summary["ram_measured_bytes"] <= 60_000
    trained = summary["plan"]["parameters"]
    assert "head.weight" in trained and "blocks.1.attn.proj.weight" not in trained
