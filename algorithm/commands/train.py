"""python -m algorithm train: a training by recipe, from a command line of timm's flags, YAML and overrides."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algorithm.commands.arguments import Parser, add_recipe_flags
from algorithm.commands.console import TrainingConsole
from algorithm.commands.resolving import complete, tree_of
from algorithm.commands.trace import record
from algorithm.commands.work import WorkFolder, check_same, finished, settings_of, stored, work_path
from algorithm.errors import AlgorithmError, CheckpointError
from algorithm.experiment import Experiment
from algorithm.journal import Journal
from algorithm.preflight import check_data, check_monitor
from algorithm.training.stopping import stop_between_steps

if TYPE_CHECKING:
    from algorithm.recipes.engine import Outcome

PATIENCE = 10           # seconds that a further process leaves the first one to say why nothing is trained
EPILOG = """\
the same command goes on where it was stopped; every flag can stand in YAML under its name, dashes or underscores alike
  python -m algorithm train --config training/dry_run.yaml
  python -m algorithm train --dataset torch/cifar100 --dataset-download --data-dir data --model s16 --opt adamw --lr 5e-4
      --weight-decay 0.05 --epochs 100 --warmup-epochs 5 --batch-size 128 --aa rand-m9-mstd0.5-inc1 --mixup 0.8
  python -m algorithm train --config training/strong_imagenet100.yaml --data-dir FOLDER model.gram.rank=64
  torchrun --nproc-per-node 4 -m algorithm train --config training/deit3.yaml --data-dir FOLDER
"""


def parser() -> Parser:
    p = Parser("train", "Train a vision transformer by a recipe.", EPILOG)
    add_recipe_flags(p)
    return p


def run(options: argparse.Namespace) -> int:
    """Refuse what can be refused, then train in a work folder; returns the exit status."""
    first = os.environ.get("RANK", "0") == "0"
    try:
        experiment = complete(tree_of(options.config, vars(options), options.overrides))
        check(experiment)
        if done := already_done(experiment):
            if first:
                Journal().say(done)
            return 0
    except AlgorithmError:
        if first:
            raise
        time.sleep(PATIENCE)                # the same refusal on every process: the first one says it, and torchrun ends all
        return 1
    if not first:
        work_beside(experiment)
        return 0
    train_here(experiment, Journal())
    return 0


def check(experiment: Experiment) -> None:
    """Refuse, without PyTorch, what names, files and this machine already show to be impossible."""
    from algorithm.models.sources import check_source, timm_name
    from algorithm.recipes.check import check_experiment
    work_path(experiment)
    check_experiment(experiment)
    check_source(experiment.model.weights, timm_name(experiment.model.name))
    check_data(experiment.data, experiment.model.num_classes)
    check_monitor(experiment.monitor)
    if experiment.output.resume is not None and not Path(experiment.output.resume).is_file():
        raise CheckpointError(f"no checkpoint at {experiment.output.resume}: give a file with --resume; the newest of the "
                              "work folder is found without")


def already_done(experiment: Experiment) -> str:
    """What to say where this very training is finished; empty where there is work. Raises WorkError for another's."""
    path = work_path(experiment)
    if experiment.output.fresh or finished(path) is None:
        return ""
    check_same(path, stored(path), settings_of(experiment))
    return f"{path} is finished with these settings; --fresh trains it again, --experiment NAME makes another"


def work_beside(experiment: Experiment) -> None:
    """A further process of torchrun: the same training, without a word."""
    from algorithm.recipes.engine import train
    with stop_between_steps() as stop:
        train(experiment, work_path(experiment), console=None, stop=stop)


def train_here(experiment: Experiment, journal: Journal) -> dict[str, Any]:
    """Train on the only, or the first, process: work folder, console, summary, report. Returns the summary."""
    start = time.perf_counter()
    with WorkFolder(experiment, journal.say) as work:
        from algorithm.recipes.engine import train
        with TrainingConsole(journal.console, work.say) as console, stop_between_steps() as stop:
            outcome = train(experiment, work.path, console=console, stop=stop)
        if experiment.output.record_trace is not None:
            record(experiment, work.path, experiment.output.record_trace, work.say)
        summary = {"updates": outcome.updates, "seconds": round(time.perf_counter() - start, 3), **accuracies(outcome)}
        work.finish(summary)
        report(experiment, work)
    return summary


def accuracies(outcome: Outcome) -> dict[str, float]:
    """Of the last evaluation, and of the best one; of the moving average, too, where there is one."""
    found = {"": outcome.evaluation, "_ema": outcome.ema_evaluation}
    out = {f"accuracy{of}": float(e.top1) for of, e in found.items() if e is not None}
    return out if outcome.best is None else {**out, "best_accuracy": float(outcome.best)}


def report(experiment: Experiment, work: WorkFolder) -> None:
    """The page to look at; the training is done whatever becomes of it."""
    if not experiment.monitor.jsonl:
        work.say(f"done: {work.path} (no report: monitor.jsonl is off)")
        return
    from algorithm.analysis.report import write_training_report
    try:
        work.say(f"report: {write_training_report(work.path)}")
    except AlgorithmError as error:
        work.say(f"done: {work.path}, but the report cannot be made: {error}")
