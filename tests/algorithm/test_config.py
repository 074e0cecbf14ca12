"""The run configuration: defaults from YAML, files, flags and overrides in order; errors name the nearest key."""

from __future__ import annotations

import json

import pytest

from algorithm.config import load_run_config, make_run_config
from algorithm.errors import ConfigError
from algorithm.monitor import Monitor, MonitorConfig


def test_flags_files_and_overrides_win_in_order(tmp_path) -> None:
    (tmp_path / "base.yaml").write_text("train: {lr: 0.5, epochs: 7}\nmodel: {img_size: 98}\n")
    (tmp_path / "mine.yaml").write_text("include: base.yaml\ntrain: {lr: 0.25}\n")
    run = load_run_config(["--config", str(tmp_path / "mine.yaml"), "--memory_budget", "256kb", "--seed", "3",
                           "train.momentum=0.9", "--no-gram", "model.img_size=112", "monitor.wandb=off"])
    assert (run.train.lr, run.train.epochs, run.train.momentum) == (0.25, 7, 0.9)
    assert run.model.img_size == 112 and run.budget.bytes == 256_000 and not run.model.gram.enabled
    assert run.train.seed == run.data.seed == run.model.seed == 3
    assert load_run_config([]).budget.bytes == 2_000_000


def test_flags_are_taken_as_they_are() -> None:
    run = load_run_config(["--name", "2024", "--data_root", "my: [folder]", "--output", "null", "--lr", "1e-2"])
    assert (run.output.name, run.data.data_root, run.output.dir) == ("2024", "my: [folder]", "null")
    assert run.train.lr == 0.01 and load_run_config(["output.name=7"]).run_name == "7"


def test_resolved_yaml_reads_back(tmp_path) -> None:
    run = load_run_config(["--data_root", "x", "plan.rule.n_bias_update=2"])
    assert run.data.name == "imagefolder" and run.plan.choose == "rule"
    (tmp_path / "c.yaml").write_text(run.to_yaml())
    assert make_run_config([tmp_path / "c.yaml"]) == run


@pytest.mark.parametrize(("argv", "match"), [
    (["trian.lr=1"], r"'trian' \(nearest known: 'train'\)"),
    (["train.learning_rate=1"], r"unknown configuration key 'train.learning_rate'"),
    (["model.gram.rnk=1"], r"'model.gram.rnk' \(nearest known: 'rank'\)"),
    (["plan.rule.n_bias_updates=1"], r"nearest known: 'n_bias_update'"),
    (["train.lr=fast"], r"'train.lr'.*found 'fast'"),
    (["train.lr=-1"], r"'train.lr'.*greater than 0"),
    (["--memory_budget", "2 parsecs"], r"unknown unit 'parsecs'"),
    (["train.lr"], r"not an override"),
    (["--config", "absent.yaml"], r"cannot read config file absent.yaml"),
    (["train.lr=[1"], r"override"),
])
def test_errors(argv: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        load_run_config(argv)
    assert "\n" not in str(caught.value)


def test_broken_config_files(tmp_path) -> None:
    path = tmp_path / "c.yaml"
    for text, match in (("a: [", "not valid YAML"), ("- 1", "must be a mapping"), ("include: c.yaml", "itself")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=match):
            make_run_config([path])


def test_help_teaches(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        load_run_config(["--help"])
    text = capsys.readouterr().out
    assert "--memory_budget" in text and "examples:" in text and "train.momentum=0.9" in text


def test_metrics_are_json_lines(tmp_path) -> None:
    with Monitor(MonitorConfig(), tmp_path) as monitor:
        monitor.log(0, loss=1.5)
        monitor.log(1, loss=1.25, accuracy=0.5)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 0, "loss": 1.5}, {"step": 1, "loss": 1.25, "accuracy": 0.5}]


def test_wandb_works_offline(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    with Monitor(MonitorConfig(wandb="offline", jsonl=False), tmp_path / "run", "test", {"lr": 1}) as monitor:
        monitor.log(0, loss=1.5)
    assert list((tmp_path / "run").rglob("*.wandb"))
