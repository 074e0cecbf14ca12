"""Metrics of a run."""

from __future__ import annotations

from algorithm.monitor.config import MonitorConfig
from algorithm.monitor.monitor import Monitor

__all__ = ["Monitor", "MonitorConfig"]
