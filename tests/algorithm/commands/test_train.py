"""`train` as it is used: a work folder comes out, the other commands read it, the same command goes on or is done."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from algorithm.__main__ import main
from algorithm.commands.resolving import tree_of

DRY = ["--config", "training/dry_run.yaml", "--threads", "1", "--epochs", "2", "--no_wandb", "data.synthetic.images=8",
       "data.synthetic.held_out=4", "model.extra.depth=2", "monitor.vis_freq=0", "monitor.analysis_freq=0",
       "monitor.histograms_every=0"]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished work folder, with a moving average and the Gram residual."""
    parent = tmp_path_factory.mktemp("work")
    assert main(["train", *DRY, "--output", str(parent), "--experiment", "x", "--model-ema-decay", "0.5",
                 "--gram_lowrank_rank", "2"]) == 0
    return parent / "x"


def say(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


def test_a_work_folder_comes_out(done: Path) -> None:
    names = {p.name for p in done.iterdir()}
    assert {"experiment.yaml", "log.txt", "summary.json", "metrics.jsonl", "report.html"} <= names
    summary = json.loads((done / "summary.json").read_text())
    assert 0 <= summary["accuracy"] <= 1 and summary["updates"] == 4 and summary["seconds"] > 0
    resolved = yaml.safe_load((done / "experiment.yaml").read_text())
    assert resolved["model"]["num_classes"] == 4 and resolved["model"]["gram"]["rank"] == 2
    assert tree_of([done / "experiment.yaml"], {}, [])["recipe"]["ema"]["decay"] == 0.5


def test_the_console_says_what_the_guides_ask_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *DRY, "--output", str(tmp_path), "--experiment", "y", "--epochs", "3"]) == 0
    text = say(capsys)
    assert re.search(r"step \d+/6 \(\d+ %\) .*images/s a device  ETA \d:\d\d:\d\d  lr \d\.\de-\d\d  loss \d", text), text
    assert "accuracy" in text and str(tmp_path / "y" / "report.html") in text


def test_the_same_command_says_that_it_is_done(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["train", *DRY, "--output", str(done.parent), "--experiment", "x", "--model-ema-decay", "0.5",
             "--gram_lowrank_rank", "2"]
    before = (done / "summary.json").stat().st_mtime_ns
    assert main(again) == 0
    assert "is finished" in say(capsys) and (done / "summary.json").stat().st_mtime_ns == before
    assert main([*again, "--lr", "0.5"]) == 1
    assert "other settings (recipe.optim.lr: 0.001 there, 0.5 here)" in say(capsys)


@pytest.mark.parametrize("ema", [False, True])
def test_validate_says_what_the_training_said(ema: bool, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--checkpoint", str(done), "--json", "-", "--workers", "0", *(["--ema"] if ema else [])]) == 0
    said = json.loads(capsys.readouterr().out)
    summary = json.loads((done / "summary.json").read_text())
    assert said["top1"] == summary["accuracy_ema" if ema else "accuracy"]
    assert said["images"] == 16 and list(said["per_class"]) == [f"class_{i}" for i in range(4)]
    assert [sum(row) for row in said["confusion"]] == [4, 4, 4, 4]
    right = sum(said["confusion"][i][i] for i in range(4))
    assert said["top1"] == right / 16 and said["top5"] == 1.0
    assert said["per_class"]["class_0"] == said["confusion"][0][0] / 4


def test_validate_shows_tables_and_refuses_other_classes(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--checkpoint", str(done), "--confusion", "--workers", "0"]) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("top-1", "top-5", "class_3", "true class"))
    assert main(["validate", "--checkpoint", str(done), "--dataset", "synthetic", "data.synthetic.classes=3"]) == 1
    assert "the data have 3 classes, the checkpoint 4" in say(capsys)
    assert main(["validate", "--checkpoint", str(done), "--model", "s16"]) == 1
    assert "model.name=s16 would be another" in say(capsys)


def test_infer_knows_the_names_of_the_classes(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from algorithm.data.config import DataConfig, SyntheticConfig
    from algorithm.data.streams import open_streams
    _, stream = open_streams(DataConfig(name="synthetic", test_images=None, images_per_class=None,
                                        synthetic=SyntheticConfig(classes=4, images=8, held_out=4)))
    stream.open(1).save(tmp_path / "one.png")
    assert main(["infer", "--checkpoint", str(done), "--input", str(tmp_path), "--json", "-"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert sorted(c["class"] for c in result["classes"]) == [f"class_{i}" for i in range(4)]
    assert sum(c["probability"] for c in result["classes"]) == pytest.approx(1)


def test_a_checkpoint_is_a_start_for_another_training(done: Path, tmp_path: Path) -> None:
    from algorithm.commands.opening import checkpoint_file
    file = checkpoint_file(done)
    assert main(["train", *DRY, "--output", str(tmp_path), "--experiment", "next", "--gram_lowrank_rank", "2",
                 "--initial-checkpoint", str(file), "--epochs", "1", "recipe.schedule.warmup_epochs=0"]) == 0


def test_a_training_that_was_stopped_goes_on(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    from algorithm.commands import train as command
    argv = ["train", *DRY, "--output", str(tmp_path), "--experiment", "x", "--model-ema-decay", "0.5",
            "--gram_lowrank_rank", "2"]

    class Stopped:
        """A stop that was asked for at the third update."""

        def __init__(self) -> None:
            self.asked = 0

        def __enter__(self) -> Any:
            return self.check

        def __exit__(self, *_: object) -> None:
            pass

        def check(self) -> None:
            self.asked += 1
            if self.asked == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command, "stop_between_steps", Stopped)
        assert main(argv) == 130
    assert "stopped" in say(capsys) and not (tmp_path / "x/summary.json").exists()
    assert main(argv) == 0
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path / "x", done))
    assert {k: v for k, v in mine.items() if "second" not in k and k != "stages"} == {
        k: v for k, v in theirs.items() if "second" not in k and k != "stages"}
    from safetensors.torch import load_file

    from algorithm.commands.opening import checkpoint_file
    ours, whole = (load_file(checkpoint_file(folder)) for folder in (tmp_path / "x", done))
    assert ours.keys() == whole.keys() and all(torch.equal(ours[k], whole[k]) for k in whole)


def test_ablate_pairs_ranks_with_the_baseline_and_completes_what_is_there(tmp_path: Path,
                                                                          capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "biases.yaml").write_text("plan: {n_bias_update: all}\n")
    argv = ["ablate", *DRY, "--epochs", "1", "--output", str(tmp_path), "--experiment", "grid", "--plans", "full",
            str(tmp_path / "biases.yaml"), "recipe.schedule.warmup_epochs=0"]
    assert main([*argv, "--ranks", "2", "--seeds", "0"]) == 0
    first = capsys.readouterr()
    assert "Ablation" in first.out and "is finished" not in first.err
    assert main([*argv, "--ranks", "2", "--seeds", "0", "1"]) == 0
    assert capsys.readouterr().err.count("is finished") == 4
    cells = json.loads((tmp_path / "grid/ablation.json").read_text())
    assert {(c["plan"], c["rank"], c["seed"]) for c in cells} == {
        (p, r, s) for p in ("full", "biases") for r in (None, 2) for s in (0, 1)}
    assert (tmp_path / "grid/ablation.png").stat().st_size > 0
    assert "| biases |" in (tmp_path / "grid/ablation.md").read_text()
    on = yaml.safe_load((tmp_path / "grid/biases-rank2-seed1/experiment.yaml").read_text())
    off = yaml.safe_load((tmp_path / "grid/biases-off-seed1/experiment.yaml").read_text())
    assert (on["model"]["gram"]["enabled"], on["plan"]["n_gram_update"]) == (True, "all")
    assert (off["model"]["gram"]["enabled"], off["plan"]["n_gram_update"]) == (False, 0)
    assert on["recipe"] == off["recipe"] and on["recipe"]["seed"] == on["model"]["seed"] == 1
