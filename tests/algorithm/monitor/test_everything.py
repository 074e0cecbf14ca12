"""Every metric that is promised, found in metrics.jsonl and in the .wandb file of one small training."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from algorithm.monitor import Confusion, Histogram, Picture, read_metrics, read_wandb_offline
from tests.algorithm.monitor.loop import CLASSES, start, train, watcher

MATRICES = [f"blocks.{i}.{m}" for i in range(2) for m in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
TRAINED = [*(f"blocks.{i}.{m}.weight" for i in range(2) for m in ("attn.qkv", "mlp.fc2")), "head.weight"]
NUMBERS = [
    "Train/loss", "Train/accuracy", "Train/learning_rate", "Optim/lr", "Optim/grad_global_norm", "Optim/update_global_norm",
    "Optim/param_global_norm",
    *(f"{v}/{m}" for v in ("Val", "ValEMA") for m in ("loss", "accuracy", "top1_accuracy", "top5_accuracy",
                                                      *(f"per_class_accuracy/{c}" for c in CLASSES[:-1]))),
    *(f"Activations/block_{i}/{o}_{s}" for i in range(2) for o in ("mhsa_out", "mlp_out") for s in ("mean", "std")),
    *(f"GramLowRank/block_{i}/{n}" for i in range(2) for n in ("T_norm", "Z_norm", "T_over_Z_norm", "A_norm", "B_norm")),
    "l2_norm_mean", "l2_norm_std", "l2_outlier_ratio",
    *(f"{group}/{m}/{n}" for group in ("spec", "spec_ema") for m in MATRICES for n in (
        "sigma_max", "delta_sv_rel", "cos_u_max", "cos_u_mean", "cos_v_max", "cos_v_mean",
        *(f"{what}{end}{k}" for what in ("sv", "cos_u", "cos_v") for end in ("", "_last") for k in (1, 2))))]
HISTOGRAMS = [*(f"{group}/{p}" for group in ("Gradients", "Params", "Updates") for p in TRAINED),
              *(f"ActivationsHist/block_{i}/mlp_out" for i in range(2)), "l2_norms"]
PICTURES = ["Vis/attention_map_samples", *(f"Vis/attention_cls_to_patch_layer1_head{h}" for h in range(2)),
            "Vis/attention_rollout_samples", "Vis/saliency_maps", "Vis/pos_embedding_similarity", "l2_norm_histogram",
            "cls_to_patch_grid"]
CHARTS = ["Charts/confusion_matrix", "Charts/confusion_matrix_ValEMA"]


def test_every_metric_is_in_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "run"
    run, _ = start(lambda model, ema: watcher(folder, model, ema, wandb="offline"))
    assert run.watch
    with run.watch.monitor, run.watch:
        train(run)
    here, there = read_metrics(folder), read_wandb_offline(folder)
    assert sorted(here) == sorted([*NUMBERS, *HISTOGRAMS, *PICTURES, *CHARTS]) and sorted(there) == sorted(here)
    for name in NUMBERS:
        assert there[name] == here[name] and isinstance(here[name][0][1], float)
    for name in HISTOGRAMS:
        (step, mine), (other, theirs) = here[name][0], there[name][0]
        assert isinstance(mine, Histogram) and (step, list(mine.counts)) == (other, theirs["values"])
        assert theirs["bins"] == pytest.approx(list(mine.edges), rel=1e-5, abs=1e-6)
    for name in PICTURES:
        assert [s for s, _ in here[name]] == [1, 3] == [s for s, _ in there[name]]
        assert there[name][0][1]["_type"] == "image-file"
        for _, picture in here[name]:
            assert isinstance(picture, Picture) and picture.path.is_relative_to(folder / "pictures")
            with Image.open(picture.path) as image:
                assert min(image.size) > 200 and len(image.convert("L").getcolors(256) or []) > 20
    for name in CHARTS:
        assert isinstance(here[name][0][1], Confusion) and there[name][0][1]["nrows"] == len(CLASSES) ** 2
    assert [s for s, _ in here["Train/loss"]] == [0, 2] and [s for s, _ in here["Val/loss"]] == [1, 3]
    assert [s for s, _ in here["spec/blocks.0.attn.qkv/sigma_max"]] == [0, 2]
    assert [s for s, _ in here["spec/blocks.0.attn.qkv/cos_u1"]] == [2]  # the first measurement has none before it
