"""Pictures of a training from its metrics.jsonl: curves, the Gram residual and activations by block."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from algorithm.analysis.charts import Panel, line_panels
from algorithm.analysis.records import Records, Series, series

RAW = "training, not smoothed"
GRAM, ACTIVATIONS = "GramLowRank/", "Activations/"
LOSSES = {"training": ("Train/loss", "loss"), "held out": ("Val/loss",), "held out, average": ("ValEMA/loss",)}
ACCURACIES = {"training": ("Train/accuracy",), "held out": ("Val/accuracy", "Val/top1_accuracy"),
              "held out, top 5": ("Val/top5_accuracy",), "held out, average": ("ValEMA/accuracy", "ValEMA/top1_accuracy")}
RATES = {"learning rate": ("Train/learning_rate", "Optim/lr", "lr")}
NORMS = {"gradient": ("Optim/grad_global_norm",), "update": ("Optim/update_global_norm",),
         "weights": ("Optim/param_global_norm",)}


def training_panels(records: Records) -> list[Panel]:
    """Loss, accuracy, learning rate and norms, each where it was recorded."""
    return [Panel("Loss", _smoothed(_lines(records, LOSSES)), faint=(RAW,)),
            Panel("Accuracy", _smoothed(_lines(records, ACCURACIES)), percent=True, faint=(RAW,)),
            Panel("Learning rate", _lines(records, RATES)),
            Panel("Norms over all weights", _lines(records, NORMS), log=True)]


def _smoothed(lines: dict[str, Series]) -> dict[str, Series]:
    """A long training curve as its trailing mean over a 25th of its points, and the points themselves behind it."""
    steps, values = lines.get("training", ([], []))
    if len(values) <= 50:
        return lines
    return {**lines, "training": (steps, smooth(values, len(values) // 25)), RAW: (steps, values)}


def curves(path: str | Path, records: Records, title: str = "Training") -> None:
    """Raises AnalysisError where none of the metrics is there."""
    line_panels(path, title, training_panels(records))


def gram_over_steps(path: str | Path, records: Records, title: str = "The Gram residual T beside the attention's output Z",
                    ) -> None:
    """T/Z and the norms of A and B, a line a block."""
    line_panels(path, title, [Panel(text, by_block(records, GRAM, key), ordered=True) for key, text in
                              (("T_over_Z_norm", "|T| / |Z|"), ("T_norm", "|T|"), ("A_norm", "|A|"), ("B_norm", "|B|"))])


def activations_over_steps(path: str | Path, records: Records, title: str = "Activations by block") -> None:
    """Mean and standard deviation of what attention and MLP give, a line a block."""
    line_panels(path, title, [
        Panel(f"{who}: {what}", by_block(records, ACTIVATIONS, f"{key}_{short}"), ordered=True)
        for key, who in (("mhsa_out", "attention"), ("mlp_out", "MLP"))
        for short, what in (("mean", "mean"), ("std", "standard deviation"))])


def histograms_over_steps(path: str | Path, records: Records, prefix: str, title: str) -> None:
    """Of recorded histograms `<prefix>/...`: the median over the steps, in a band from the 5th to the 95th percentile."""
    panels = []
    for name in (n for n in records if n.startswith(f"{prefix}/")):
        found = {step: quantiles(h["counts"], h["edges"], (0.05, 0.5, 0.95)) for step, h in records[name]
                 if isinstance(h, dict) and sum(h.get("counts", ()))}
        if found:
            steps = sorted(found)
            low, middle, high = ([found[s][i] for s in steps] for i in range(3))
            label = name.removeprefix(f"{prefix}/")
            panels.append(Panel(label, {"": ([float(s) for s in steps], middle)}, bands={"": (low, high)}))
    line_panels(path, title, panels)


def quantiles(counts: Sequence[int], edges: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Where these shares of a histogram's values lie below, each bin's values spread evenly over it."""
    total = np.cumsum([0, *counts])
    return [float(v) for v in np.interp(np.asarray(shares) * total[-1], total, edges)]


def by_block(records: Records, prefix: str, key: str) -> dict[str, Series]:
    """{"block 3": series} of `<prefix>block_3/<key>`, by number."""
    found = {int(m[1]): n for n in records if (m := re.fullmatch(rf"{prefix}block_(\d+)/{key}", n))}
    return {f"block {i}": series(records, found[i]) for i in sorted(found)}


def smooth(values: list[float], window: int) -> list[float]:
    """Trailing mean over `window` values."""
    total = np.cumsum([0.0, *values])
    low = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    high = np.arange(1, len(values) + 1)
    return [float(v) for v in (total[high] - total[low]) / (high - low)]


def _lines(records: Records, wanted: Mapping[str, tuple[str, ...]]) -> dict[str, Series]:
    """Of each line the first of its names that was recorded."""
    found = {label: [s for n in options if (s := series(records, n))[0]] for label, options in wanted.items()}
    return {label: lines[0] for label, lines in found.items() if lines}
