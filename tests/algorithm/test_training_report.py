"""The report of a training: everything in the folder is in the page, and what is absent is named with its option."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from algorithm.analysis.report import write_training_report
from algorithm.errors import AnalysisError
from algorithm.training.checkpoint import write_safetensors

PICTURES = ["Vis/attention_map_samples", "Vis/attention_cls_to_patch_layer11_head0", "Vis/attention_rollout_samples",
            "Vis/saliency_maps", "Vis/pos_embedding_similarity", "l2_norm_histogram", "cls_to_patch_grid"]
EVERYTHING: dict[str, Any] = {
    "Train/loss": 1.5, "Train/learning_rate": 0.1, "Val/top1_accuracy": 0.75, "ValEMA/top1_accuracy": 0.8,
    "Optim/grad_global_norm": 1.0, "GramLowRank/block_0/T_over_Z_norm": 0.125, "Activations/block_0/mlp_out_mean": 0.1,
    "spec/blocks.0.attn.qkv/sigma_max": 2.0, "spec_ema/blocks.0.attn.qkv/sigma_max": 2.0, "l2_norm_mean": 40.5,
    "Params/head.weight": {"counts": [1, 2], "edges": [0.0, 1.0, 2.0]}, "Val/per_class_accuracy/<cat>": 0.5,
    "Charts/confusion_matrix": {"classes": ["<cat>", "dog"], "cells": [[0, 0, 3], [1, 0, 1]]}}


class Page(HTMLParser):
    """Checks that tags are balanced; collects the pictures by their alternative text, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: dict[str, str] = {}
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            found = dict(attrs)
            self.pictures[str(found["alt"])] = str(found["src"])
        elif tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def work_folder(folder: Path, metrics: dict[str, Any]) -> Path:
    folder.mkdir()
    with (folder / "metrics.jsonl").open("w") as file:
        for step in (0, 10):
            file.write(json.dumps({"step": step, **metrics}) + "\n")
    return folder


def png(path: Path, level: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((2, 2, 3), level, np.uint8)).save(path)
    return path.read_bytes()


def test_everything_in_the_folder_is_in_the_page(tmp_path: Path) -> None:
    folder = work_folder(tmp_path / "my run", EVERYTHING)
    files = {(name, step): png(folder / "pictures" / name / f"{step:08d}.png", 10 * i + step)
             for i, name in enumerate([*PICTURES, "mine"]) for step in (0, 10)}
    png(folder / "pictures" / "single.png", 250)
    (folder / "experiment.yaml").write_text("model: {name: vit_x, img_size: 98}\ndata: {name: digits}\n"
                                            "recipe: {seed: 7, optim: {opt: lamb}, schedule: {sched: cosine, epochs: 3}}\n")
    (folder / "summary.json").write_text('{"accuracy": 0.75, "seconds": 125.0, "stages": {"reading": 61.0}}')
    write_safetensors(folder / "checkpoints" / "latest.safetensors", {"w": torch.zeros(3)}, {"update": 11, "experiment": {}})
    (folder / "checkpoints" / "broken.safetensors").write_text("x")
    path = write_training_report(folder)
    assert path == folder / "report.html"
    page = Page(path.read_text("utf-8"))
    for (name, step), data in files.items():
        source = page.pictures[name if step else f"{name}, first"]
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == data
    drawn = {"curves", "confusion matrix", "Gram residual", "Activations", "Spectra over the training",
             "Spectra of the moving average", "Distribution of weights"}
    assert set(page.pictures) == {*PICTURES, "mine", "single", *(f"{n}, first" for n in [*PICTURES, "mine"]), *drawn}
    for name in drawn:
        svg = base64.b64decode(page.pictures[name].removeprefix("data:image/svg+xml;base64,"))
        assert b"<svg" in svg and svg.count(b"<path") > 10
    for text in ("my run", "vit_x at 98 px on digits: lamb, cosine schedule, 3 epochs, seed 7.", "75.0 %", "80.0 %", "0.125",
                 "2 min 5 s", "1 min 1 s", "40.5", "<cat>", "update 11", "broken.safetensors", "cannot be read",
                 "img_size: 98", "Optim/grad_global_norm"):
        assert text in page.text, text
    assert "Not in this report" not in page.text
    assert not re.search(r'(?:src|href)="(?!data:)', path.read_text("utf-8")), "the page is self-contained"


def test_what_is_absent_is_named_with_its_option(tmp_path: Path) -> None:
    folder = work_folder(tmp_path / "run", {"other": 1.0})
    page = Page(write_training_report(folder).read_text("utf-8"))
    assert page.pictures == {}
    for option in ("recipe.progress_every", "monitor.classes_freq", "monitor.gram_every", "monitor.activations_every",
                   "monitor.spec_monitor", "monitor.histograms_every", "monitor.analysis_freq", "monitor.vis_freq",
                   "recipe.checkpoint_every", "summary.json", "experiment.yaml"):
        assert option in page.text


def test_a_folder_without_or_with_damaged_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match=r"metrics\.jsonl"):
        write_training_report(tmp_path)
    folder = work_folder(tmp_path / "run", {"other": 1.0})
    write_training_report(folder)
    before = (folder / "report.html").read_bytes()
    (folder / "metrics.jsonl").write_text("[]\n")
    with pytest.raises(AnalysisError, match="line 1"):
        write_training_report(folder)
    assert (folder / "report.html").read_bytes() == before
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
