"""Singular values of weight matrices over the training, and how far their vectors turned between two measurements."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from algorithm.analysis.matrices import weight_matrices
from algorithm.analysis.spectrum import Spectrum, followed, measure, metrics
from algorithm.errors import AnalysisError, ConfigError
from algorithm.monitor.config import MonitorConfig
from algorithm.monitor.observer import PART, Observer, Scene, Values


class Spectra(Observer):
    """`spec/<matrix>/...` of the model, `spec_ema/<matrix>/...` of its average: `algorithm.analysis.spectrum.metrics`,
    from the second measurement on with the change since the one before, also over a resume."""

    def __init__(self, scene: Scene, config: MonitorConfig) -> None:
        self.scene, self.config = scene, config
        self.every = (config.spec_every or 0) if config.spec_monitor else 0
        self._before: dict[str, Spectrum] = {}
        if self.every:
            try:
                _matrices(scene.model, config)
            except AnalysisError as error:
                raise ConfigError(f"monitor.spec_targets: {error}") from None

    def after_step(self, step: int) -> Values:
        values = self._of("spec", self.scene.model)
        return values | self._of("spec_ema", self.scene.ema) if self.scene.ema is not None else values

    def _of(self, group: str, model: nn.Module) -> Values:
        values: Values = {}
        for name, matrix in _matrices(model, self.config).items():
            key = f"{group}/{name}"
            now = measure(name, matrix, self.config.spec_topk, self.config.spec_interval, vectors=True,
                          on_cpu=self.config.spec_on_cpu)
            values |= {f"{key}/{k}": v for k, v in metrics(now, self._before.get(key)).items()}
            self._before[key] = now
        return values

    def state(self) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for key, s in self._before.items():
            assert s.u is not None and s.v is not None  # measured with vectors
            parts = {"values": s.values, "u": s.u, "v": s.v, "floor": s.floor}
            out |= {f"{key}:{part}": torch.as_tensor(value).clone() for part, value in parts.items()}
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """What was measured with another topk or interval, or of another shape, is left out: its change begins anew."""
        known = {f"{g}/{n}": m for g, model in (("spec", self.scene.model), ("spec_ema", self.scene.ema))
                 if model is not None for n, m in _matrices(model, self.config).items()}
        for key, matrix in known.items():
            if f"{key}:values" not in state:
                continue
            values, u, v, floor = (state[f"{key}:{part}"].numpy() for part in ("values", "u", "v", "floor"))
            rows, columns = int(matrix.shape[0]), int(matrix.shape[1])
            first, last = followed(min(rows, columns), self.config.spec_topk, self.config.spec_interval)
            count = len(first) + len(last)
            if (u.shape, v.shape, len(values)) == ((rows, count), (columns, count), min(rows, columns)):
                self._before[key] = Spectrum(key.partition("/")[2], (rows, columns), values, first, last, float(floor), u, v)


def _matrices(model: nn.Module, config: MonitorConfig) -> dict[str, Tensor]:
    """The whole matrices; the slice of one that is trained in part is in it."""
    found = weight_matrices(model, config.spec_targets)
    return {name: matrix for name, matrix in found.items() if not name.endswith(f".{PART}")}
