"""Curves, histograms, matrices: what a training and its spectra look like over steps and layers. PNG or SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from algorithm.analysis.artifacts import NormStatistics
from algorithm.analysis.records import Series
from algorithm.analysis.style import COLOURS, FAINT, LIMIT, drawing, ordered_colours, short
from algorithm.errors import AnalysisError

MOST_NAMES = 40             # classes whose names fit on the axes of a confusion matrix
MOST_LABELS = 8             # lines that get a legend entry each; of more, every second, third ...


@dataclass(frozen=True)
class Panel:
    """Lines over steps. ordered: they have an order (blocks), so their colours run dark to light.
    faint: names drawn behind. bands: (low, high) around a line."""

    title: str
    lines: Mapping[str, Series]
    log: bool = False
    percent: bool = False
    ordered: bool = False
    faint: Sequence[str] = field(default=())
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(steps for steps, _ in self.lines.values())


def line_panels(path: str | Path, title: str, panels: Sequence[Panel], x_label: str = "step") -> None:
    """Panels, two a row; those without a value are left out. A name has one colour in all of them.

    Raises AnalysisError where no panel has a value.
    """
    shown = [p for p in panels if p]
    if not shown:
        raise AnalysisError(f"nothing to draw for {title!r}: none of its metrics was recorded")
    same = dict.fromkeys(n for p in shown if not p.ordered for n in p.lines if n not in p.faint)
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(same)}
    with drawing(path, title, *_page(len(shown))) as figure:
        for axes, panel in zip(_panels(figure, len(shown)), shown, strict=True):
            _draw(axes, panel, colours)
            axes.set_xlabel(x_label)


def _draw(axes: Axes, panel: Panel, colour_of: Mapping[str, str]) -> None:
    lines = {n: s for n, s in panel.lines.items() if s[0]}
    colours = ordered_colours(len(lines)) if panel.ordered else [colour_of.get(n, FAINT) for n in lines]
    every = -(-len(lines) // MOST_LABELS)
    for i, ((name, (steps, values)), colour) in enumerate(zip(lines.items(), colours, strict=True)):
        label = name if i % every == 0 or i == len(lines) - 1 else None
        faint = name in panel.faint
        axes.plot(steps, values, color=colour, alpha=0.55 if faint else 1, label=label,
                  linewidth=1.0 if faint else None, zorder=1.5 if faint else 2, marker="o" if len(steps) < 25 else None,
                  markersize=3.5)
        if name in panel.bands:
            axes.fill_between(steps, *panel.bands[name], color=colour, alpha=0.15, linewidth=0)
    if panel.log and all(v > 0 for _, values in lines.values() for v in values):
        axes.set_yscale("log")
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(panel.title)
    if len(lines) > 1:
        axes.legend(loc="best", ncols=2 if len(lines) > 4 else 1)


def norm_histogram(path: str | Path, found: NormStatistics, title: str = "Norms of the last layer's patch tokens") -> None:
    """The L2 norms with both lines: the mean and the limit of outliers (mean + 3 sigma)."""
    with drawing(path, title, 7.0, 4.0) as figure:
        axes = figure.add_subplot()
        values = found.norms.ravel()
        top = max(float(values.max()), found.limit)
        margin = 0.03 * (top - float(values.min())) or 0.5
        axes.hist(values, bins=60, range=(float(values.min()) - margin, top + margin), color=COLOURS[0], alpha=0.8)
        axes.axvline(found.mean, color=COLOURS[2], label=f"mean {found.mean:.4g}")
        sigmas = (found.limit - found.mean) / found.std if found.std else 3.0
        axes.axvline(found.limit, color=LIMIT, linestyle="--", label=f"mean + {sigmas:.3g} σ = {found.limit:.4g}")
        axes.set(xlabel="L2 norm of a token", ylabel="tokens (logarithmic)", yscale="log")
        axes.set_title(f"{100 * found.outlier_ratio:.2f} % of {values.size:,} tokens beyond the dashed line")
        axes.set_ylim(top=3 * axes.get_ylim()[1])
        axes.legend()


def confusion(path: str | Path, matrix: Any, classes: Sequence[str], title: str = "Confusion matrix") -> None:
    """matrix (C, C) of counts: a row the true class, a column the predicted one. Colours are shares of a row."""
    counts = np.asarray(matrix, np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or len(classes) != len(counts):
        raise AnalysisError(f"a confusion matrix of {len(classes)} classes must be square, found the shape {counts.shape}")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n = len(counts)
    side = min(9.0, max(4.6, 0.42 * n + 2.2))
    with drawing(path, title, side + 0.8, side) as figure:
        axes = figure.add_subplot()
        axes.grid(False)
        drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if n <= MOST_NAMES:
            names = [short(c) for c in classes]
            size = 9 if n <= 20 else 7
            axes.set_xticks(range(n), names, rotation=60 if n > 4 else 0, ha="right" if n > 4 else "center",
                            rotation_mode="anchor", fontsize=size)
            axes.set_yticks(range(n), names, fontsize=size)
        if n <= 20:
            for i, j in zip(*np.nonzero(counts), strict=True):
                axes.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center", fontsize=8 if n <= 12 else 6,
                          color="white" if shares[i, j] > 0.55 else "#1d2330")
        axes.set(xlabel="predicted", ylabel="true")
        figure.colorbar(drawn, ax=axes, shrink=0.75, label="share of the true class", format=PercentFormatter(1.0))


def _page(count: int) -> tuple[float, float]:
    return (6.6, 4.0) if count == 1 else (10.4, 0.4 + 3.3 * -(-count // 2))


def _panels(figure: Figure, count: int) -> list[Axes]:
    columns = min(2, count)
    return [figure.add_subplot(-(-count // columns), columns, i + 1) for i in range(count)]
