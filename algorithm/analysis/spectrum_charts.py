"""Pictures of spectra: of one measurement by layer and type, and over the steps of a training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algorithm.analysis.charts import Panel, line_panels
from algorithm.analysis.matrices import kind_of, layer_of
from algorithm.analysis.records import Records, Series, series
from algorithm.analysis.spectrum import Spectrum

OTHER = "matrices that are there once"


def spectra(path: str | Path, found: Sequence[Spectrum], title: str = "Singular values") -> None:
    """Each matrix's singular values by index, a panel a type, a line a layer; what is below the floor is left out."""
    panels: dict[str, dict[str, Series]] = defaultdict(dict)
    kinds = [kind_of(s.name) for s in found]
    for spectrum, kind in zip(found, kinds, strict=True):
        values = spectrum.values[:spectrum.rank]
        line: Series = ([float(i + 1) for i in range(len(values))], [float(v) for v in values])
        single = kinds.count(kind) == 1
        panels[OTHER if single else kind][spectrum.name if single else layer_of(spectrum.name)] = line
    line_panels(path, title, [Panel(k, lines, log=True, ordered=k != OTHER) for k, lines in panels.items()],
                "index of the singular value")


def spectrum_by_layer(path: str | Path, found: Sequence[Spectrum], title: str = "Spectra by layer and type") -> None:
    """sigma_max, stable rank, effective rank and condition over the layers, a line a type (those with several layers)."""
    panels = [Panel(text, _by_layer(found, key), log=log) for key, text, log in
              (("sigma_max", "largest singular value", False), ("stable_rank", "stable rank", False),
               ("effective_rank", "effective rank", False), ("condition", "condition number", True))]
    line_panels(path, title, panels, "layer")


def _by_layer(found: Sequence[Spectrum], key: str) -> dict[str, Series]:
    lines: dict[str, Series] = {}
    for spectrum in found:
        index = layer_of(spectrum.name).rpartition(".")[2]
        value = float(getattr(spectrum, key))
        if index.isdigit() and np.isfinite(value):
            steps, values = lines.setdefault(kind_of(spectrum.name), ([], []))
            steps.append(float(index))
            values.append(value)
    return {k: line for k, line in lines.items() if len(line[0]) > 1}


def spectra_over_steps(path: str | Path, records: Records, prefix: str = "spec", title: str = "Spectra over the training",
                       ) -> None:
    """From metrics.jsonl: a line a type, the mean over its layers, in a band from the smallest to the largest."""
    panels = []
    for key, text in (("sigma_max", "largest singular value"), ("delta_sv_rel", "change of the singular values, relative"),
                      ("cos_u_mean", "left vectors: mean cosine with those before"),
                      ("cos_v_mean", "right vectors: mean cosine with those before")):
        groups: dict[str, list[Series]] = defaultdict(list)
        for name in records:
            matrix, _, what = name.removeprefix(f"{prefix}/").rpartition("/")
            if what == key and name.startswith(f"{prefix}/"):
                groups[kind_of(matrix)].append(series(records, name))
        panels.append(_banded(text, groups))
    line_panels(path, title, panels)


def _banded(title: str, groups: dict[str, list[Series]]) -> Panel:
    lines: dict[str, Series] = {}
    bands: dict[str, Any] = {}
    for kind, members in groups.items():
        at: dict[float, list[float]] = defaultdict(list)
        for steps, values in members:
            for step, value in zip(steps, values, strict=True):
                at[step].append(value)
        steps = sorted(at)
        lines[kind] = (steps, [float(np.mean(at[s])) for s in steps])
        if len(members) > 1:
            bands[kind] = ([min(at[s]) for s in steps], [max(at[s]) for s in steps])
    return Panel(title, lines, bands=bands)
