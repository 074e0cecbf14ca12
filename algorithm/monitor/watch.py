"""What a training by recipe calls: every observer at its own frequency, none of which changes the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from algorithm.monitor.activations import Activations, GramNorms
from algorithm.monitor.config import MonitorConfig
from algorithm.monitor.evaluations import evaluation_values
from algorithm.monitor.histograms import Histograms
from algorithm.monitor.monitor import Monitor
from algorithm.monitor.observer import Evaluation, Observer, Scene, Values, inner, is_compiled
from algorithm.monitor.pictures import Artifacts, Visuals
from algorithm.monitor.scalars import Norms
from algorithm.monitor.spectra import Spectra
from algorithm.schema import one_line


class Watch:
    """Observes a training, on its rank 0; all values are of this rank's images. A context manager, which ends with
    `close`, and without an error with `finish` before.

    model: as it is called, also inside DistributedDataParallel or torch.compile, with its update plan applied. A compiled
    forward sees no hooks: there activations and Gram norms are of the fixed `samples` (S, C, H, W; normalised, on the
    model's device) as in evaluation. ema: timm's moving average, for its spectra. progress_every: updates between lines of
    loss and norms. first_step: the update that this process begins with; metrics.jsonl keeps what is before it.

    The training calls, for update s (0-based), `before_step(s)` before its first forward, `before_update(s)` when its
    gradients are complete, unscaled and clipped, `after_step(s, ...)` after the update and the moving average, and
    `evaluated(s, ...)`. With or without a Watch the weights are the same, bit for bit, and so are all random states.
    A measurement that fails is left out with one line to the monitor's `warn`: it is not worth a training.
    Raises ConfigError for options that name what the model does not have.
    """

    def __init__(self, config: MonitorConfig, monitor: Monitor, model: nn.Module, *, ema: nn.Module | None = None,
                 samples: Tensor | None = None, sample_labels: Tensor | None = None, classes: Sequence[str] = (),
                 progress_every: int = 10, first_step: int = 0) -> None:
        self.config, self.monitor, self.progress_every = config, monitor, progress_every
        self.scene = Scene(inner(model), monitor, None if ema is None else inner(ema), samples, sample_labels,
                           tuple(classes), hooks=not is_compiled(model))
        self.observers: dict[str, Observer] = {} if not config.listens else {
            "norms": Norms(self.scene, progress_every), "activations": Activations(self.scene, config),
            "gram": GramNorms(self.scene, config), "histograms": Histograms(self.scene, config),
            "spectra": Spectra(self.scene, config), "visuals": Visuals(self.scene, config),
            "artifacts": Artifacts(self.scene, config)}
        self._first_step, self._evaluations = first_step, 0
        self._not_due: tuple[int, list[str]] | None = None  # step of the last evaluation, who was not asked about it
        self._failed: set[str] = set()
        monitor.keep_before(first_step)

    def before_step(self, step: int) -> None:
        """Before the first forward of update `step`."""
        for name, observer in self._due(step):
            self._try(name, lambda observer=observer: observer.before_step(step))  # type: ignore[misc]

    def before_update(self, step: int) -> None:
        """Gradients are complete, unscaled and clipped; the optimiser has not stepped."""
        for name, observer in self._due(step):
            self._try(name, lambda observer=observer: observer.before_update(step))  # type: ignore[misc]

    def after_step(self, step: int, *, loss: float | Tensor, accuracy: float | Tensor | None = None, lr: float) -> None:
        """After the update (of slices, too: AppliedPlan.sync) and the moving average. loss, accuracy: of its images; tensors
        are read when they are due."""
        values: Values = {}
        if step % self.progress_every == 0:
            values = {"Train/loss": float(loss), "Train/learning_rate": lr, "Optim/lr": lr}
            values |= {} if accuracy is None else {"Train/accuracy": float(accuracy)}
        for name, observer in self._due(step):
            values |= self._try(name, lambda observer=observer: observer.after_step(step)) or {}  # type: ignore[misc]
        self.scene.forget()
        self._not_due = None
        if values:
            self.monitor.record(step, values)

    def evaluated(self, step: int, evaluation: Evaluation, prefix: str = "Val") -> None:
        """After an evaluation of the model ("Val"), or of its average (another prefix).

        That of a step before first_step, as of a training that was whole already, is on record.
        """
        if step < self._first_step:
            return
        count = self._evaluations - (prefix != "Val")
        values = evaluation_values(evaluation, prefix, self.scene.classes, self._counts(self.config.classes_freq, count))
        if prefix == "Val":
            self._evaluations += 1
            due = [n for n, o in self.observers.items() if self._counts(o.freq, count)]
            self._not_due = step, [n for n, o in self.observers.items() if o.freq and n not in due]
            values |= self._looks(step, due)
        self.monitor.record(step, values)

    def finish(self) -> None:
        """The training is whole: show the model of its end, too, where the last evaluation was not due to be."""
        step, names = self._not_due or (0, [])
        self._not_due = None
        if names:
            self.monitor.record(step, self._looks(step, names))

    def _looks(self, step: int, names: Sequence[str]) -> Values:
        """What observers of evaluations measure."""
        values: Values = {}
        for name in names:
            values |= self._try(name, lambda name=name: self.observers[name].evaluated(step)) or {}  # type: ignore[misc]
        return values

    @staticmethod
    def _counts(freq: int | None, count: int) -> bool:
        """Whether the evaluation number `count` is one of every `freq`."""
        return bool(freq) and count % (freq or 1) == 0

    def state(self) -> dict[str, Any]:
        """What must be remembered over a resume: nested dicts of CPU tensors and numbers."""
        return {"evaluations": self._evaluations, "observers": {n: s for n, o in self.observers.items() if (s := o.state())}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self._evaluations = int(state["evaluations"])
        for name, remembered in state["observers"].items():
            if name in self.observers:
                self.observers[name].load_state(remembered)

    def close(self) -> None:
        """Take every hook off the model. The monitor stays open."""
        for observer in self.observers.values():
            observer.close()
        self.scene.forget()

    def _due(self, step: int) -> list[tuple[str, Observer]]:
        return [(n, o) for n, o in self.observers.items() if o.every and step % o.every == 0]

    def _try(self, name: str, call: Callable[[], Values | None]) -> Values | None:
        """What a measurement gives, or nothing, and one line the first time: what it raises does not end a training."""
        try:
            return call()
        except Exception as error:  # of torch (memory, no convergence), of the file system, of what a model lacks
            self.observers[name].close()
            if name not in self._failed:
                self._failed.add(name)
                self.monitor.warn(f"monitor: {name} cannot be measured ({one_line(error)}); the training goes on")
            return None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        self.close()
