"""How pictures look, and how they are written: the same input gives the same file, whatever the user's matplotlibrc."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from algorithm.analysis.files import write_whole
from algorithm.errors import AnalysisError

INK, SOFT, RULE = "#1d2330", "#5c6577", "#e2e5ea"
COLOURS = ("#2e5eaa", "#d1495b", "#2a7d4f", "#e08e45", "#7a5195", "#c9a227", "#4c86c6", "#8a93a6")
LIMIT, FAINT = "#c0392b", "#8a93a6"
ORDERED = "viridis"         # of what has an order: blocks, magnitudes
SIGNED = "RdBu_r"           # of what has a sign
ENDINGS = (".png", ".svg")
INCHES_A_LETTER = 0.125     # of a title

STYLE: dict[str, Any] = {
    "font.size": 10, "font.family": "DejaVu Sans", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": SOFT,
    "xtick.color": SOFT, "ytick.color": SOFT, "axes.titlesize": 11, "axes.titlelocation": "left", "axes.titlepad": 8,
    "figure.titlesize": 13, "figure.titleweight": "bold", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.8, "axes.axisbelow": True, "lines.linewidth": 1.8,
    "legend.framealpha": 0.85, "legend.edgecolor": "none", "legend.fontsize": 9, "axes.prop_cycle": cycler(color=COLOURS),
    "image.interpolation": "nearest", "svg.hashsalt": "algorithm.analysis", "svg.fonttype": "path",
    "axes.formatter.useoffset": False, "savefig.dpi": 120,
}


@contextmanager
def drawing(path: str | Path, title: str, width: float = 8.0, height: float = 4.2) -> Iterator[Figure]:
    """A figure of inches width x height to draw in, written to `path` (.png or .svg) at the end, whole or not at all.

    It is as wide as its title at least. Raises AnalysisError for another ending, or where the file cannot be written.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise AnalysisError(f"cannot draw {path}: expected a name that ends in {' or '.join(ENDINGS)}")
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(max(width, INCHES_A_LETTER * len(title) + 0.3), height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, x=0.01, ha="left")
        yield figure
        metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
        write_whole(path, lambda file: figure.savefig(file, metadata=metadata))


def bare(axes: Axes) -> Axes:
    """Axes of an image: no ticks, no frame, no grid."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return axes


def ordered_colours(count: int) -> list[Any]:
    """A colour for each of `count` things that have an order, dark to light, none too light for a white page."""
    return list(matplotlib.colormaps[ORDERED](np.linspace(0.0, 0.88, max(1, count))))


def short(text: str, limit: int = 18) -> str:
    return text if len(text) <= limit else text[:limit - 1] + "…"
