"""Histograms of chosen weights, their gradients and updates, and of chosen activations."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import Tensor, nn

from algorithm.errors import ConfigError
from algorithm.monitor.activations import ForwardObserver, block_outputs
from algorithm.monitor.config import MonitorConfig
from algorithm.monitor.observer import Scene, Values, trained_leaves
from algorithm.monitor.probe import Probe, Reduce
from algorithm.monitor.values import Histogram
from algorithm.schema import nearest


class Histograms(ForwardObserver):
    """`Params/<path>`, `Gradients/<path>`, `Updates/<path>` of trained parameters, `ActivationsHist/block_i/...`.

    Of a sliced matrix it is the trained slice.
    """

    def __init__(self, scene: Scene, config: MonitorConfig) -> None:
        self.patterns, self.bins = config.hist_params, config.hist_bins
        outputs = block_outputs(scene.model)
        for option, known, what in (("hist_params", trained_leaves(scene.model).keys(), "trained parameter"),
                                    ("hist_activations", outputs.keys(), "output of a block")):
            if config.changed(option):
                _check(getattr(config, option), list(known), option, what)
        targets: dict[str, tuple[nn.Module, Reduce]] = {
            n: (outputs[n], lambda module, x, y: y) for n in matching(config.hist_activations, outputs)}
        super().__init__(scene, config.histograms_every or 0, Probe(targets))
        self._gradients: Values = {}

    def _of(self, group: str, tensors: dict[str, Tensor]) -> Values:
        return {f"{group}/{n}": Histogram.of(tensors[n], self.bins) for n in matching(self.patterns, tensors)}

    def before_update(self, step: int) -> None:
        self.scene.remember()
        self._gradients = self._of("Gradients", {n: g for n, leaf in trained_leaves(self.scene.model).items()
                                                 if (g := leaf.trained.grad) is not None})

    def after_step(self, step: int) -> Values:
        self.collect()
        leaves = trained_leaves(self.scene.model)
        values = self._gradients | self._of("Params", {n: leaf.trained for n, leaf in leaves.items()})
        values |= self._of("Updates", self.scene.updates())
        values |= {f"ActivationsHist/{n}": Histogram.of(seen[-1], self.bins) for n, seen in self.probe.seen.items()}
        self._gradients, self.probe.seen = {}, {}
        return values


def matching(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """The names that a pattern fits, in their order."""
    known = list(patterns)
    return [n for n in names if any(fnmatchcase(n, p) for p in known)]


def _check(patterns: list[str], names: list[str], option: str, what: str) -> None:
    for pattern in patterns:
        if not matching([pattern], names):
            raise ConfigError(f"monitor.{option}: {pattern!r} names no {what} of the model{nearest(pattern, names)}")
