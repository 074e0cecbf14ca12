"""Training by recipe, on one process of one or many: from an experiment to checkpoints, metrics and an evaluation.

Order, augmentation, mixing and drop-path follow from (seed, update, micro-batch) alone, so a training that goes on from a
checkpoint makes the same updates as one that never stopped, on the CPU bit for bit; and several processes make those of
one that accumulates as many passes, but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from algorithm.data.streams import open_streams
from algorithm.experiment import Experiment, settings_of
from algorithm.recipes.check import check_experiment
from algorithm.recipes.checkpoint import Checkpoint, Keeper, check_goes_on, load_checkpoint, newest
from algorithm.recipes.devices import find_device
from algorithm.recipes.distributed import World, find_world, joined
from algorithm.recipes.reporting import Evaluation
from algorithm.recipes.training import Training
from algorithm.sparse.plan import UpdatePlan

Check = Callable[[], None]
Scores = tuple[Evaluation, Evaluation | None]


class Console(Protocol):
    """Where a training tells how it goes."""

    def begin(self, total: int, done: int, images: int) -> None:
        """total: updates of the whole training; done: of those, before this start; images: of an update, a device."""

    def update(self, done: int, lr: float, **values: float) -> None:
        """After an update, `done` are made."""

    def pause(self) -> None:
        """The time until the next update is not the training's."""

    def say(self, text: str) -> None:
        """A line of its own."""


class Silent:
    """A console that tells nothing."""

    def begin(self, total: int, done: int, images: int) -> None:
        pass

    def update(self, done: int, lr: float, **values: float) -> None:
        pass

    def pause(self) -> None:
        pass

    def say(self, text: str) -> None:
        pass


@dataclass(frozen=True)
class Outcome:
    """A finished training: updates made, its last evaluations, the best accuracy (of the average, where that is evaluated),
    the last checkpoint, and the plan in force at the end."""

    updates: int
    evaluation: Evaluation
    ema_evaluation: Evaluation | None
    best: float
    checkpoint: Path
    plan: UpdatePlan


def train(experiment: Experiment, folder: Path, *, console: Console | None = None, stop: Check | None = None) -> Outcome:
    """Train in a work folder, on this process; goes on from `output.resume`, or from the newest checkpoint there.

    stop: called between two updates; what it raises ends the training on every process, saved up to there.
    Raises AlgorithmError: ConfigError, ModelError, WeightsError, PlanError, DataError, CheckpointError,
    NonFiniteLossError, DistributedError.
    """
    check_experiment(experiment)
    world = find_world()
    tell = console if console is not None and world.first else Silent()
    device = find_device(experiment.recipe.device, world.local_rank, world.size)
    if experiment.recipe.threads:
        torch.set_num_threads(experiment.recipe.threads)
    with joined(world, device, lambda: newest(folder)), ExitStack() as stack:
        found = find_checkpoint(experiment, folder, world, tell.say)
        streams = open_streams(experiment.data, *([tell.say] if world.first else [_ignore]))
        training = stack.enter_context(Training(experiment, streams, world, device, found))
        watch = stack.enter_context(_watching(experiment, folder, training, found, tell)) if world.first else None
        return _Run(experiment, folder, training, watch, tell, stop, found).walk()


def find_checkpoint(experiment: Experiment, folder: Path, world: World, say: Callable[[str], None]) -> Checkpoint | None:
    """What to go on from, if anything; the first process decides for all. Raises CheckpointError where it is another's."""
    asked = experiment.output.resume
    if asked is None and world.first:
        Keeper(folder, experiment.recipe.keep).clean()
        path = newest(folder, say)
    else:
        path = None if asked is None else Path(asked)
    path = world.shared(path)
    if path is None:
        return None
    found = load_checkpoint(path)
    check_goes_on(found, settings_of(experiment))
    if world.first:
        Keeper(folder, experiment.recipe.keep).mend(found)
    return found


def _ignore(_: str) -> None:
    """The first process warns for all."""


@contextmanager
def _watching(experiment: Experiment, folder: Path, training: Training, found: Checkpoint | None,
              tell: Console) -> Iterator[Any]:
    """The monitor's observer of the training."""
    from algorithm.monitor.monitor import Monitor
    from algorithm.monitor.watch import Watch
    settings = settings_of(experiment)
    samples, labels = training.samples(experiment.monitor.samples)
    with Monitor(experiment.monitor, folder, experiment.output.name or folder.name, settings, tell.say) as monitor, \
            Watch(experiment.monitor, monitor, training.forward, ema=training.average, samples=samples, sample_labels=labels,
                  classes=training.classes, progress_every=experiment.recipe.progress_every,
                  first_step=training.update) as watch:
        if found is not None:
            watch.load_state(found.state("watch"))
        yield watch


class _Run:
    """The updates from first to last, with what stands between them."""

    def __init__(self, experiment: Experiment, folder: Path, training: Training, watch: Any, tell: Console,
                 stop: Check | None, found: Checkpoint | None) -> None:
        self.recipe, self.training, self.watch, self.tell, self.stop = experiment.recipe, training, watch, tell, stop
        self.keeper = Keeper(folder, experiment.recipe.keep)
        self.best: float | None = found.best if found else None
        self.scores: Scores | None = None
        epoch = training.length.epoch
        self.eval_every = self.recipe.eval_every or epoch
        self.save_every = self.recipe.checkpoint_every or self.recipe.save_freq * epoch

    def walk(self) -> Outcome:
        """Every update that is left, and what follows on each."""
        training, total = self.training, self.training.length.total
        self.tell.begin(total, training.update, self.recipe.batch * self.recipe.accum_steps)
        self.tell.say(training.describe())
        for update in training.updates():
            watch = self.watch
            step = training.step(update, watch)
            if watch:
                watch.after_step(update, loss=step.loss, accuracy=step.accuracy, lr=step.lr)
            if update % self.recipe.progress_every == 0 or update + 1 == total:
                self.tell.update(update + 1, step.lr, **training.checked(step))
            self.after(update, total)
        if self.scores is None:     # a training that was whole already
            self.scores = self.evaluate(total - 1)
            self.save(False)
        evaluation, average = self.scores
        best = self.best if self.best is not None else self.judged(self.scores)
        return Outcome(total, evaluation, average, best, self.keeper.path(total), training.applied.plan)

    def after(self, update: int, total: int) -> None:
        """Evaluation, checkpoint and stop, where they are due after an update."""
        done, last = update + 1, update + 1 == total
        better = False
        if last or done % self.eval_every == 0:
            self.scores = self.evaluate(update)
            accuracy = self.judged(self.scores)
            better = self.best is None or accuracy > self.best
            self.best = accuracy if better or self.best is None else self.best
        asked = self.asked_to_stop()
        if last or better or asked or done % self.save_every == 0:
            self.save(better)
        if asked:
            raise asked

    def judged(self, scores: Scores) -> float:
        """The accuracy that decides what is best: the average's, where it is evaluated."""
        evaluation, average = scores
        return (average or evaluation).top1

    def evaluate(self, update: int) -> Scores:
        """The model, and its average, on all held-out images."""
        self.tell.pause()
        scores = self.training.evaluate(update)
        for evaluation, prefix, of in zip(scores, ("Val", "ValEMA"), ("", " of the average"), strict=True):
            if evaluation is None:
                continue
            if self.watch:
                self.watch.evaluated(update, evaluation, prefix)
            self.tell.say(f"after update {update + 1}: accuracy{of} {evaluation.top1:.1%}, loss {evaluation.loss:.4g}")
        self.tell.pause()
        return scores

    def save(self, better: bool) -> None:
        """A checkpoint of what is now; only of finite weights. Raises NonFiniteLossError."""
        self.tell.pause()
        self.training.save(self.keeper.path(self.training.update), self.watch, self.best)
        if self.training.world.first:
            self.keeper.name(self.training.update, better)

    def asked_to_stop(self) -> BaseException | None:
        """What `stop` raised, on any process: then all of them stop after the same update."""
        raised: BaseException | None = None
        try:
            if self.stop:
                self.stop()
        except BaseException as error:
            raised = error
        if self.training.world.size > 1:
            flag = torch.tensor([float(raised is not None)], device=self.training.device)
            if float(self.training.world.sum(flag)) and raised is None:
                raised = KeyboardInterrupt()
        return raised


