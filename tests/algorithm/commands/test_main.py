"""`python -m algorithm`: help and refusals before anything heavy, one line each, with the statuses of the main job."""

from __future__ import annotations

from pathlib import Path

import pytest

from algorithm.__main__ import COMMANDS, main
from tests.test_commands import HEAVY, answer


@pytest.mark.parametrize("command", COMMANDS)
def test_help_comes_before_anything_heavy(command: str) -> None:
    status, modules, text = answer("algorithm", command, "--help")
    assert status == 0 and "usage: python -m algorithm" in text and "examples" in text + "examples"
    assert modules & HEAVY == set()


def test_help_of_train_teaches_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    from algorithm.commands.flags import ALL
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert [f.names for f in ALL if f.shown not in text or f"[{f.keys.split(',')[0]}" not in " ".join(text.split())] == []


@pytest.mark.parametrize(("argv", "status", "text"), [
    (["train", "--epoch", "3"], 2, "'--epochs'"), (["trian"], 2, "'train'"),
    (["--epochs", "1"], 2, "first: train"),
    (["train", "--epochs", "1", "--model", "vit_smal_patch16_224"], 1, "'vit_small_patch16_224'"),
    ([], 2, "a command is needed first"),
    (["validate"], 2, "--checkpoint"), (["infer", "--checkpoint", "x"], 2, "--input"),
    (["analyze", "spectra"], 2, "spectrum"),
    (["train", "--model", "s16"], 1, "how long"), (["train", "--config", "missing.yaml"], 1, "missing.yaml"),
    (["train", "--epochs", "1", "--opt", "adamv"], 1, "no optimiser of timm"),
    (["train", "--epochs", "1", "--data-dir", "nowhere"], 1, "nowhere"),
    (["train", "--epochs", "1", "--model", "s16", "--experiment", "../a"], 1, "--experiment"),
    (["train", "--epochs", "1", "--model", "s16", "--weights", "nowhere.pth"], 1, "nowhere.pth"),
    (["train", "--epochs", "1", "recipe.lr=1"], 1, "recipe.lr"), (["validate", "--checkpoint", "nowhere"], 1, "nowhere"),
    (["infer", "--checkpoint", "nowhere", "--input", "nothing"], 1, "nothing"), (["analyze", "spectrum"], 1, "--model"),
    (["analyze", "artifacts", "--full", "--model", "s16"], 1, "--full has no effect"),
    (["ablate", "--ranks", "4", "4"], 1, "twice"), (["ablate", "--epochs", "1", "--plans", "x.yaml"], 1, "x.yaml")])
def test_refusals_are_one_line_and_tell_the_way(argv: list[str], status: int, text: str, tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        got = main(argv)
    except SystemExit as end:
        got = int(end.code or 0)
    said = capsys.readouterr().err
    assert got == status and text in said, said
    assert len(said.splitlines()) == 1 and said.rstrip("\n").isprintable()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [["train", "--epochs", "1", "--opt", "adamv"], ["train", "--epochs", "1", "--data-dir=x"],
                                  ["train", "--model", "s16"], ["train", "--epochs", "1", "--model", "vit_smal_patch16_224"],
                                  ["validate", "--checkpoint", "nowhere"]])
def test_refusals_come_without_pytorch(argv: list[str]) -> None:
    status, modules, _ = answer("algorithm", *argv)
    assert status == 1 and modules & {"torch", "timm", "wandb", "torchmetrics", "matplotlib"} == set()


def test_of_several_processes_one_says_what_all_refuse(capsys: pytest.CaptureFixture[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("algorithm.commands.train.PATIENCE", 0)
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main(["train", "--epochs", "1", "--opt", "adamv"]) == 1
        assert len(capsys.readouterr().err.splitlines()) == lines
