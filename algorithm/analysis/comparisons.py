"""Runs side by side: an ablation over ranks against its paired baseline, and methods by accuracy and RAM."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import PercentFormatter

from algorithm.analysis.style import COLOURS, drawing
from algorithm.analysis.tables import Table, share
from algorithm.errors import AnalysisError


@dataclass(frozen=True)
class Trial:
    """One run of an ablation. rank None: the baseline, the same run without the residual. accuracy: fraction of 1."""

    plan: str
    rank: int | None
    seed: int
    accuracy: float


@dataclass(frozen=True)
class Level:
    """One plan and rank over its seeds: accuracies in the order of the seeds, and the differences to the baseline of the
    same plan and seed."""

    plan: str
    rank: int | None
    seeds: tuple[int, ...]
    accuracies: tuple[float, ...]
    gains: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.accuracies))

    @property
    def std(self) -> float | None:
        """Over seeds (n - 1); None of one seed."""
        return float(np.std(self.accuracies, ddof=1)) if len(self.accuracies) > 1 else None

    @property
    def gain(self) -> float | None:
        return float(np.mean(self.gains)) if self.gains else None

    @property
    def gain_error(self) -> float | None:
        """Standard error of the mean of the paired differences; None of fewer than two."""
        return float(np.std(self.gains, ddof=1)) / len(self.gains) ** 0.5 if len(self.gains) > 1 else None


def levels(trials: Iterable[Trial]) -> list[Level]:
    """By plan in the order given, the baseline first, then by rank. Raises AnalysisError for two runs of one kind."""
    by_kind: dict[tuple[str, int | None], dict[int, float]] = defaultdict(dict)
    plans: list[str] = []
    for t in trials:
        if t.seed in by_kind[t.plan, t.rank]:
            raise AnalysisError(f"ablation: plan {t.plan!r}, rank {t.rank}, seed {t.seed} is there twice: leave one out")
        if not 0 <= t.accuracy <= 1:
            raise AnalysisError(f"ablation: accuracy must be a fraction of 1, found {t.accuracy!r}")
        by_kind[t.plan, t.rank][t.seed] = t.accuracy
        plans += [t.plan] if t.plan not in plans else []
    if not plans:
        raise AnalysisError("ablation: no run to compare")
    out = []
    for plan in plans:
        base = by_kind.get((plan, None), {})
        ranks = sorted((r for p, r in by_kind if p == plan), key=lambda r: -1 if r is None else r)
        for rank in ranks:
            runs = by_kind[plan, rank]
            gains = [runs[s] - base[s] for s in sorted(runs) if s in base] if rank is not None else []
            out.append(Level(plan, rank, tuple(sorted(runs)), tuple(runs[s] for s in sorted(runs)), tuple(gains)))
    return out


def ablation_table(trials: Iterable[Trial]) -> Table:
    """A row a plan and rank: accuracy, and what the residual gains over the baseline of the same seed."""
    rows = []
    for level in levels(trials):
        better = f"{sum(g > 0 for g in level.gains)} of {len(level.gains)}" if level.gains else "–"
        rows.append([level.plan, "off" if level.rank is None else str(level.rank), str(len(level.seeds)),
                     _spread(level.mean, level.std), _points(level.gain, level.gain_error), better])
    return Table("Ablation of the Gram residual's rank",
                 ["plan", "rank", "seeds", "accuracy (± std)", "gain, points (± std error)", "better on"], rows)


def ablation_plot(path: str | Path, trials: Iterable[Trial],
                  title: str = "Accuracy by the rank of the Gram residual") -> None:
    """A dot a run, a line through the means, and the baseline (residual off) dashed, in the colour of its plan."""
    by_plan: dict[str, list[Level]] = defaultdict(list)
    for level in levels(trials):
        by_plan[level.plan].append(level)
    ranks = sorted({lv.rank for group in by_plan.values() for lv in group if lv.rank is not None})
    if not ranks:
        raise AnalysisError("ablation: no run with a rank to draw; give at least one rank")
    at = {rank: float(i) for i, rank in enumerate(ranks)}
    with drawing(path, title, 7.4, 4.4) as figure:
        axes = figure.add_subplot()
        for i, (plan, group) in enumerate(by_plan.items()):
            colour, shift = COLOURS[i % len(COLOURS)], 0.06 * (i - (len(by_plan) - 1) / 2)
            with_rank = [lv for lv in group if lv.rank is not None]
            axes.plot([at[lv.rank] for lv in with_rank if lv.rank], [lv.mean for lv in with_rank], color=colour, marker="o",
                      markersize=6, label=f"{plan}: mean")
            for lv in with_rank:
                axes.scatter([at[lv.rank or 0] + shift] * len(lv.accuracies), lv.accuracies, s=16, color=colour, alpha=0.45,
                             linewidths=0)
            for lv in group:
                if lv.rank is None:
                    axes.axhline(lv.mean, color=colour, linestyle="--", linewidth=1.4, label=f"{plan}: off")
                    axes.axhspan(min(lv.accuracies), max(lv.accuracies), color=colour, alpha=0.08, linewidth=0)
        axes.set_xticks(list(at.values()), [str(r) for r in ranks])
        axes.set(xlabel="rank (dots: seeds; dashed: without the residual, its band from the worst to the best seed)",
                 ylabel="accuracy, held out", xlim=(-0.4, len(ranks) - 0.6))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend(loc="best")


@dataclass(frozen=True)
class Result:
    """One run of a method on a task. accuracy: fraction of 1; ram_bytes: of the device's training step; macs: its work."""

    task: str
    method: str
    seed: int
    accuracy: float
    ram_bytes: int
    macs: int | None = None


def results_table(results: Sequence[Result], title: str = "Methods side by side") -> Table:
    """A row a method and task: accuracy over its seeds, RAM, work. RAM and work must not depend on the seed."""
    rows = []
    for (task, method), group in _grouped(results).items():
        first = group[0]
        if any((r.ram_bytes, r.macs) != (first.ram_bytes, first.macs) for r in group):
            raise AnalysisError(f"results of {method!r} on {task!r} differ in RAM or work between seeds: they are not "
                                "runs of one plan")
        values = [r.accuracy for r in group]
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        rows.append([task, method, str(len(group)), _spread(float(np.mean(values)), std), f"{first.ram_bytes:,}",
                     "–" if first.macs is None else f"{first.macs / 1e6:,.0f} M"])
    return Table(title, ["task", "method", "seeds", "accuracy (± std)", "RAM, bytes", "multiply-accumulates a step"], rows)


def results_plot(path: str | Path, results: Sequence[Result], title: str = "Accuracy and RAM of the training step") -> None:
    """A panel a task: accuracy over RAM, small dots the seeds, large ones their mean with its name."""
    grouped = _grouped(results)
    tasks, methods = (list(dict.fromkeys(key[i] for key in grouped)) for i in (0, 1))
    with drawing(path, title, max(6.6, 4.9 * len(tasks)), 4.6) as figure:
        for panel, task in enumerate(tasks):
            axes = figure.add_subplot(1, len(tasks), panel + 1)
            for i, method in enumerate(methods):
                group = grouped.get((task, method))
                if group:
                    colour = COLOURS[i % len(COLOURS)]
                    ram, mean = group[0].ram_bytes, float(np.mean([r.accuracy for r in group]))
                    axes.plot([ram] * 2, [min(r.accuracy for r in group), max(r.accuracy for r in group)], color=colour,
                              linewidth=1.2, alpha=0.6)
                    axes.scatter([r.ram_bytes for r in group], [r.accuracy for r in group], s=14, color=colour, alpha=0.5,
                                 linewidths=0)
                    axes.scatter([ram], [mean], s=70, color=colour, label=method, zorder=3,
                                 marker="osD^vP*X"[i // len(COLOURS) % 8])
            axes.set_title(task)
            axes.set(xlabel="RAM of a training step", ylabel="accuracy, held out" if not panel else "", xscale="log")
            sizes = [r.ram_bytes for r in results if r.task == task]
            axes.set_xlim(min(sizes) / 1.25, max(sizes) * 1.25)
            ticks = _byte_ticks(*axes.get_xlim())
            axes.set_xticks(ticks, [_bytes(t) for t in ticks])
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.tick_params(labelsize=8)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))


def trials_from(rows: Iterable[Mapping[str, Any]]) -> list[Trial]:
    """Trials from plain rows {"plan", "rank", "seed", "accuracy", ...}; further keys are left aside."""
    return [Trial(str(r["plan"]), None if r["rank"] is None else int(r["rank"]), int(r["seed"]), float(r["accuracy"]))
            for r in rows]


def _grouped(results: Sequence[Result]) -> dict[tuple[str, str], list[Result]]:
    grouped: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for r in results:
        grouped[r.task, r.method].append(r)
    if not grouped:
        raise AnalysisError("no result to compare")
    return grouped


def _byte_ticks(low: float, high: float) -> list[float]:
    """Of 1, 1.5, 2, 3, 5, 7 x 10^k those between low and high."""
    return [m * 10.0 ** k for k in range(13) for m in (1, 1.5, 2, 3, 5, 7) if low <= m * 10.0 ** k <= high]


def _bytes(value: float) -> str:
    return f"{value / 1e6:.3g} MB" if value >= 1e6 else f"{value / 1e3:.3g} kB" if value >= 1e3 else f"{value:.0f} B"


def _spread(mean: float, std: float | None) -> str:
    return share(mean) if std is None else f"{share(mean)} ± {100 * std:.1f}"


def _points(gain: float | None, error: float | None) -> str:
    return "–" if gain is None else f"{100 * gain:+.1f}" + ("" if error is None else f" ± {100 * error:.1f}")
