"""What is recorded of a run while it trains: numbers, histograms, pictures, spectra; to metrics.jsonl and wandb.

Pure observers: nothing here changes a weight or takes a random number. What is computed and drawn stands in
`algorithm.analysis`. Loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from algorithm.lazy import loader
from algorithm.monitor.config import LogConfig, MonitorConfig

if TYPE_CHECKING:
    from algorithm.monitor.gram import gram_norms
    from algorithm.monitor.monitor import Monitor
    from algorithm.monitor.read import read_metrics, read_wandb_offline
    from algorithm.monitor.values import Confusion, Histogram, Picture
    from algorithm.monitor.watch import Watch

_HOMES: dict[str, tuple[str, ...]] = {
    "gram": ("gram_norms",), "monitor": ("Monitor",), "read": ("read_metrics", "read_wandb_offline"),
    "values": ("Confusion", "Histogram", "Picture"), "watch": ("Watch",)}
__getattr__ = loader(__name__, _HOMES)
__all__ = ["Confusion", "Histogram", "LogConfig", "Monitor", "MonitorConfig", "Picture", "Watch", "gram_norms",
           "read_metrics", "read_wandb_offline"]
