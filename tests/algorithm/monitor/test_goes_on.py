"""What a Watch remembers over a resume, and what happens where something cannot be recorded."""

from __future__ import annotations

import copy
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithm.errors import AnalysisError, CheckpointError, ConfigError
from algorithm.monitor import Monitor, MonitorConfig, Picture, Watch, read_metrics, read_wandb_offline
from tests.algorithm.monitor.loop import CLASSES, LABELS, SAMPLES, Evaluated, load, model_of, start, train, watcher

QUIET: dict[str, Any] = {"vis_freq": None, "vis_images": 4, "analysis_freq": None}


def test_a_resumed_training_records_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Byte for byte, the principal cosines too, although it was killed after steps that it then makes again."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run, _ = start(lambda model, ema: watcher(whole, model, ema, **QUIET))
    assert run.watch
    with run.watch.monitor, run.watch:
        train(run, range(8))

    run, _ = start(lambda model, ema: watcher(killed, model, ema, **QUIET))
    train(run, range(4))
    saved = copy.deepcopy(run.state())
    train(run, range(4, 7))
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "Train/lo')
    run, _ = start(lambda model, ema: watcher(killed, model, ema, first_step=4, **QUIET))
    load(run, saved)
    assert run.watch
    with run.watch.monitor, run.watch:
        train(run, range(4, 8))
    found = read_metrics(killed)
    assert [s for s, _ in found["spec/blocks.1.mlp.fc2/cos_v_mean"]] == [2, 4, 6]
    assert [s for s, _ in found["spec_ema/blocks.1.mlp.fc2/sigma_max"]] == [0, 2, 4, 6]
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_what_was_measured_otherwise_is_not_compared(tmp_path: Path) -> None:
    run, _ = start(lambda model, ema: watcher(tmp_path, model, ema, **QUIET))
    train(run, range(2))
    saved = run.state()
    run, _ = start(lambda model, ema: watcher(tmp_path, model, ema, first_step=2, spec_topk=3, **QUIET))
    load(run, saved)
    assert run.watch
    with run.watch.monitor, run.watch:
        train(run, range(2, 3))
    name = "spec/blocks.0.attn.proj/"
    assert name + "sv3" in read_metrics(tmp_path) and name + "delta_sv_rel" not in read_metrics(tmp_path)


def test_what_cannot_be_measured_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA out of memory\nand more")

    monkeypatch.setattr("algorithm.monitor.spectra.measure", fail)
    monkeypatch.setattr("algorithm.monitor.pictures.get_attention_maps", fail)
    said: list[str] = []
    config = MonitorConfig(vis_freq=1, spec_monitor=True, spec_every=2)
    run, _ = start()
    run.watch = Watch(config, Monitor(config, tmp_path, warn=said.append), run.model, samples=SAMPLES, progress_every=1)
    other, _ = start()
    with run.watch.monitor, run.watch:
        train(run)
    train(other)
    assert all(map(torch.equal, run.model.state_dict().values(), other.model.state_dict().values()))
    assert [s for s, _ in read_metrics(tmp_path)["Train/loss"]] == [0, 1, 2, 3]
    assert said == [f"monitor: {name} cannot be measured (CUDA out of memory); the training goes on"
                    for name in ("spectra", "visuals", "artifacts")]


@pytest.mark.parametrize("what", ["init", "log"])
def test_trouble_with_wandb_ends_no_training(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Service:
        def log(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("no route to host")

        def finish(self) -> None:
            raise AssertionError("it is off")

    def init(*_: Any, **__: Any) -> Service:
        if what == "init":
            raise OSError("no space left on device")
        return Service()

    monkeypatch.setattr("wandb.init", init)
    said: list[str] = []
    config = MonitorConfig(wandb="online", vis_freq=None, analysis_freq=None)
    run, _ = start()
    run.watch = Watch(config, Monitor(config, tmp_path, warn=said.append), run.model, progress_every=1)
    with run.watch.monitor, run.watch:
        train(run)
    reason = {"init": "no space left on device", "log": "no route to host"}[what]
    assert said == [f"Weights & Biases is off from here on ({reason}); the training goes on"]
    assert [s for s, _ in read_metrics(tmp_path)["Train/loss"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("stopped", [False, True])
def test_the_end_is_shown_unless_the_training_was_stopped(stopped: bool, tmp_path: Path) -> None:
    config: dict[str, Any] = {"vis_freq": None, "vis_images": 4, "analysis_freq": 2}
    run, _ = start(lambda model, ema: watcher(tmp_path, model, ema, **config))
    assert run.watch
    with run.watch.monitor, nullcontext() if not stopped else pytest.raises(KeyboardInterrupt), run.watch:
        train(run, range(8))  # evaluations after the steps 1, 3, 5, 7
        if stopped:
            raise KeyboardInterrupt
    found = read_metrics(tmp_path)
    assert [s for s, _ in found["l2_norm_mean"]] == [1, 5] + [7] * (not stopped)
    with watcher(tmp_path, run.model, first_step=8, **config) as watch, watch.monitor:  # it was whole: evaluated once more
        watch.evaluated(7, Evaluated())
    assert read_metrics(tmp_path) == found


def test_without_anywhere_to_record_nothing_is_measured(tmp_path: Path) -> None:
    config = MonitorConfig(jsonl=False)
    watch = Watch(config, Monitor(config, tmp_path / "run"), model_of(), samples=SAMPLES, progress_every=1)
    run, _ = start()
    run.watch = watch
    train(run, range(2))
    assert not watch.observers and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("changes", "config", "text"), [
    ({"gram": {"enabled": False}}, {"gram_every": 5}, "monitor.gram_every has no effect on a model without the Gram"),
    ({}, {"hist_params": ["blocks.0.attn.qkw.weight"]}, "nearest known: 'blocks.0.attn.qkv.weight'"),
    ({}, {"hist_activations": ["block_7/*"]}, "names no output of a block"),
    ({}, {"spec_monitor": True, "spec_targets": ["attn.qkw"]}, "monitor.spec_targets: .*nearest known: 'attn.qkv'"),
    ({}, {"vis_layers": [2]}, "monitor.vis_layers: there is no layer 2"),
    ({}, {"vis_heads": [0, 2]}, "monitor.vis_heads: there is no head 2"),
])
def test_what_the_model_does_not_have_is_refused(changes: dict[str, Any], config: dict[str, Any], text: str,
                                                 tmp_path: Path) -> None:
    settings = MonitorConfig(**config)
    with pytest.raises(ConfigError, match=text):
        Watch(settings, Monitor(settings, tmp_path), model_of(**changes), samples=SAMPLES, sample_labels=LABELS,
              classes=CLASSES)


def test_pictures_move_with_their_folder(tmp_path: Path) -> None:
    monitor = Monitor(MonitorConfig(), tmp_path / "a")
    monitor.record(3, {"Vis/x": Picture(monitor.picture_path("Vis/x", 3)), "bad": float("nan")})
    monitor.close()
    shutil.move(tmp_path / "a", tmp_path / "b")
    found = read_metrics(tmp_path / "b")
    assert found["Vis/x"] == [(3, Picture(tmp_path / "b" / "pictures" / "Vis" / "x" / "00000003.png"))]
    assert found["bad"][0][1] != found["bad"][0][1]


def _wandb_file(path: Path, *rows: tuple[int, str]) -> None:
    """As Weights & Biases writes them: fragments of at most what is left of a block of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    out = bytearray(b":W&B\0\0\0")
    for step, value in rows:
        record = Record()
        record.history.step.num = step
        item = record.history.item.add()
        item.nested_key.append("loss")
        item.value_json = value
        data, first = record.SerializeToString(), True
        while first or data:
            if (room := 32768 - len(out) % 32768) < 7:
                out += bytes(room)
                continue
            part, data = data[:room - 7], data[room - 7:]
            kind = (1 if first else 4) if not data else 2 if first else 3
            out += bytes(4) + len(part).to_bytes(2, "little") + bytes([kind]) + part
            first = False
    path.parent.mkdir(parents=True)
    path.write_bytes(out)


def test_files_of_wandb_of_a_resumed_run_are_one_series(tmp_path: Path) -> None:
    long = '"' + "x" * 70000 + '"'
    _wandb_file(tmp_path / "offline-run-1" / "a.wandb", (0, "1.5"), (1, long), (2, "2"))
    _wandb_file(tmp_path / "offline-run-2" / "a.wandb", (2, "2.5"), (3, "3.5"))
    assert read_wandb_offline(tmp_path) == {"loss": [(0, 1.5), (1, long[1:-1]), (2, 2.5), (3, 3.5)]}
    whole = (tmp_path / "offline-run-2" / "a.wandb").read_bytes()
    (tmp_path / "offline-run-2" / "a.wandb").write_bytes(whole[:-3])  # killed while it wrote
    assert read_wandb_offline(tmp_path)["loss"][2:] == [(2, 2.5)]


@pytest.mark.parametrize(("text", "expected"), [
    ('{"step": 1, "x": {"counts": [1]}}\n', "holds a x that no run records"),
    ('{"x": 1}\n', "line 1, is no record of a step"), (None, "cannot read .*metrics.jsonl")])
def test_damaged_records_are_told(text: str | None, expected: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(AnalysisError, match=expected):
        read_metrics(tmp_path)
    with pytest.raises(CheckpointError, match=r"no \.wandb file"):
        read_wandb_offline(tmp_path)
    (tmp_path / "x.wandb").write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="does not begin with :W&B"):
        read_wandb_offline(tmp_path)
