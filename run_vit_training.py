"""Train a vision transformer inside a memory budget, compile the training step to C, and prove that it is the same.

    python run_vit_training.py --memory_budget 2mb

One call a stage: model, data, plan, compilation, C, and then, side by side, the fine-tuning in PyTorch and the proof in
the simulator; the report. `--help` teaches the options; `docs/architecture.md` walks one image through the stages.

The same command goes on where it was stopped, and points at the report once it is done (`--fresh` starts again).
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

# PyTorch, TVM and the rest are imported in the functions that use them, so that `--help` and refusals come at once.
from algorithm.config import RunConfig, load_run_config
from algorithm.continuing import continues
from algorithm.errors import AlgorithmError
from algorithm.journal import Journal, refuse
from compilation.errors import BudgetError, CompilationError
from runtime.errors import ReportError, RuntimeStageError
from runtime.folder import TRAINING, RunFolder

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from algorithm import UpdatePlan
    from algorithm.data import Dataset
    from algorithm.sparse.merit import SearchResult
    from algorithm.training.beside import GoOn
    from compilation.capture import InputSpec
    from compilation.pipeline import Compiled, Compiler
    from runtime.simulator import Measured
    from runtime.toolchain import Build
    from runtime.validate import Validation

EXIT_REFUSED, EXIT_OVER_BUDGET, EXIT_STOPPED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """The main job; returns the exit status (0 done, 1 refused, 2 the budget cannot be met, 130 stopped)."""
    try:
        run(load_run_config(argv), Journal())
    except BudgetError as error:
        refuse(error, "over budget")
        return EXIT_OVER_BUDGET
    except (AlgorithmError, CompilationError, RuntimeStageError) as error:
        refuse(error)
        return EXIT_REFUSED
    except OSError as error:
        refuse(f"{error.filename or 'the output folder'} cannot be read or written: {error.strerror or error}")
        return EXIT_REFUSED
    except KeyboardInterrupt:
        refuse("the same command goes on with the training, where it had begun", "stopped")
        return EXIT_STOPPED
    return 0


def run(config: RunConfig, journal: Journal) -> Path:
    """Refuse what can be refused, then walk the whole road in a folder of its own; returns the run folder."""
    preflight(config)
    with RunFolder.open(config.output.dir, config.run_name, config.settings(), continues=continues,
                        fresh=config.output.fresh, say=journal.say) as folder:
        return point_at(folder, journal) if folder.done else walk(config, folder, journal)


def preflight(config: RunConfig) -> None:
    """Refuse before any work what the configuration and this machine already show to be impossible."""
    from algorithm.preflight import preflight as preflight_algorithm
    from compilation.cost import STACK_BYTES
    from runtime.toolchain import check_compiler
    preflight_algorithm(config)
    least = STACK_BYTES + 3 * config.model.img_size ** 2
    if config.budget.bytes < least:
        raise BudgetError(f"the stack reserve and one image alone need at least {least:,} bytes of RAM, the budget is "
                          f"{config.budget.bytes:,}: raise it, or lower model.img_size", least, "the input image")
    check_compiler(build_of(config))


def walk(config: RunConfig, folder: RunFolder, journal: Journal) -> Path:
    """One call a stage."""
    with journal.stage("imports"):
        import torch

        from algorithm import build_model, choose_plan, load_data
        from algorithm.models import input_scale_shift
        from algorithm.training import save_model
        from algorithm.training.beside import Beside
        from compilation.capture import InputSpec
        from runtime.codegen.generate import generate
        from runtime.report import RunReport, console_table, write_report
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    folder.write_text("config.yaml", config.to_yaml())

    with journal.stage("model", f"model {config.model.name}, weights {config.model.weights}"):
        model = build_model(config.model)
    with journal.stage("data"):
        train, test = load_data(config.data, config.model.img_size, config.model.num_classes, journal.say)
    height, width, channels = train.images.shape[1:]
    scale, shift = input_scale_shift(model)

    with journal.stage("plan", "capturing the model and choosing the update plan"):
        compilers = Compilers(model, InputSpec((channels, height, width), scale, shift), config.model.name)
        budget, momentum = config.budget.bytes, config.train.momentum
        found = choose_plan(config.plan, model, lambda plan: compilers.of(plan).smallest_ram(
            selections(plan), momentum, config.compile.max_recompute), budget,
            least=lambda plan: compilers.of(plan).smallest_ram(selections(plan), momentum))
        plan, facts = require_plan(found, compilers, config)
        model, compiler = compilers.model(plan), compilers.of(plan)
        for label, fact in facts.items():
            journal.say(f"{label}: {fact}")
        plan.save(folder.file("plan.yaml"))

    with journal.stage("compile", f"plan: {plan.describe()}; compiling for {budget:,} bytes of RAM"):
        compiled = compiler.compile(selections(plan), budget, momentum)
        folder.write_text("program.txt", compiled.program.text())
        folder.write_text("program.json", compiled.program.to_json())
        generate(compiled.program, compiled.values, folder.file("c"))

    with journal.stage("accuracy before", f"{len(test)} held-out images"):
        before = measure_accuracy(model, test, config, "before", journal)
    journal.say(f"accuracy before {before:.1%}; fine-tuning on {len(train)} images, and proving the C code beside it")
    initial = copy.deepcopy(model)
    with Beside(lambda go_on: (*prove(initial, plan, train, compiled, config, folder, journal, go_on),
                               frontier(found, plan, compilers, compiled, momentum, journal, go_on))) as proof:
        with journal.stage("fine-tuning"):
            losses, growth = train_model(model, plan, train, config, folder, journal, proof.check)
        with journal.stage("accuracy after"):
            after = measure_accuracy(model, test, config, "after", journal, proof.check)
        journal.say(f"accuracy after {after:.1%}")
        save_model(model, folder.file("checkpoint.safetensors"), plan=plan.to_dict(), accuracy=after)
        measured, validation, points = proof.result()

    report = RunReport(
        config.run_name, compiled.program, measured, validation, compiled.bound, compiled.trained_parameters,
        plan.to_dict(), budget, before, after, losses, compiled.macs_without_recompute, compiled.schedule, compiled.slower,
        points, {**facts, **recipe_facts(config)}, gram=growth, stages=journal.seconds)
    for name in ("report.html", "summary.json"):
        folder.file(name)
    write_report(folder.path, report)
    done = folder.finish()
    journal.show(console_table(report))     # only now: what listens may be gone, the run is whole
    journal.console.print(journal.table())
    journal.say(f"report: {done / 'report.html'}")
    validation.require()
    return done


def point_at(folder: RunFolder, journal: Journal) -> Path:
    """This very run is finished: say where it is. Raises ReportError where it was not proven or cannot be read."""
    try:
        proven = json.loads((folder.path / "summary.json").read_text())["validated"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ReportError(f"{folder.path} is finished, but its summary.json cannot be read: --fresh trains it again"
                          ) from None
    if not proven:
        raise ReportError(f"{folder.path} is finished and not proven: see {folder.path / 'report.html'}; --fresh trains it "
                          "again")
    journal.say(f"{folder.path} is finished with these settings, proven; --fresh trains it again, --name makes another")
    journal.say(f"report: {folder.path / 'report.html'}")
    return folder.path


def selections(plan: UpdatePlan) -> dict[str, str | dict[str, list[int]]]:
    """The plan as the plain data that the compiler reads."""
    parameters: dict[str, str | dict[str, list[int]]] = plan.to_dict()["parameters"]
    return parameters


class Compilers:
    """The model at each rank of the Gram residual that plans ask for, and a compiler of each, made when first asked for."""

    def __init__(self, model: nn.Module, spec: InputSpec, name: str) -> None:
        self._model, self._spec, self._name = model, spec, name
        self._made: dict[int | None, tuple[nn.Module, Compiler]] = {}

    def _of(self, rank: int | None) -> tuple[nn.Module, Compiler]:
        if rank not in self._made:
            from algorithm.models.gram import at_gram_rank
            from compilation.pipeline import Compiler
            model = at_gram_rank(self._model, rank)
            self._made[rank] = model, Compiler(model, self._spec, self._name)
        return self._made[rank]

    def model(self, plan: UpdatePlan) -> nn.Module:
        """The model that a plan trains."""
        return self._of(plan.gram_rank)[0]

    def of(self, plan: UpdatePlan) -> Compiler:
        """The compiler of the model that a plan trains."""
        return self._of(plan.gram_rank)[1]


def require_plan(found: SearchResult, compilers: Compilers, config: RunConfig) -> tuple[UpdatePlan, dict[str, str]]:
    """The plan that fits (with plan.nearest, the nearest to the one asked for) and facts for the report.

    Raises BudgetError: smallest figure, what binds it, nearest plan.
    """
    if found.best:
        return found.best.plan, {}
    asked, budget = found.tried[0] if config.plan.choose != "auto" else found.smallest, found.budget
    if asked is None or asked.bytes is None:
        raise BudgetError(f"no update plan can be compiled within {budget:,} bytes", 0, "")
    near = found.nearest
    taken = f"{near.plan.describe()} ({near.bytes:,} bytes" if near else ""
    if near and config.plan.nearest:
        return near.plan, {"plan asked for": f"{asked.plan.describe()} needs at least {asked.bytes:,} bytes of RAM, "
                                             f"{asked.bytes - budget:,} more than the budget",
                           "nearest plan, taken": f"{taken})"}
    smallest = found.smallest
    less = (f"the smallest plan, {smallest.plan.describe()}, needs {smallest.bytes:,} bytes"
            if smallest and smallest is not asked else "no plan of the order of merit needs less")
    compiler = compilers.of(asked.plan)
    schedule = compiler.planner(selections(asked.plan), config.train.momentum).smallest()
    raise compiler.refusal(asked.plan.describe(), schedule, budget, f"{taken}; --nearest takes it)" if near else None, less)


def measure_accuracy(model: nn.Module, data: Dataset, config: RunConfig, when: str, journal: Journal,
                     check: GoOn | None = None) -> float:
    """Top-1 on held-out images, with progress. check: called after every batch; ends the evaluation by raising."""
    from algorithm import evaluate
    from algorithm.training.progress import progress
    with progress(f"evaluating {when}", len(data), journal.console) as bar:
        def on_batch(done: int) -> None:
            bar.done(done)
            if check:
                check()
        return evaluate(model, data, config.train.eval_batch, on_batch).accuracy


def train_model(model: nn.Module, plan: UpdatePlan, data: Dataset, config: RunConfig, folder: RunFolder,
                journal: Journal, check: GoOn) -> tuple[list[float], list[dict[str, float]]]:
    """Fine-tune in place with the device's updates; resumes from the run folder. Returns the losses, and how the Gram
    residuals grew that are trained.

    check: called after every step; raises the error of the work beside.
    """
    from algorithm import finetune
    from algorithm.models import images_to_input, input_scale_shift
    from algorithm.monitor import Monitor
    from algorithm.monitor.gram import GramGrowth
    from algorithm.training.progress import progress
    from algorithm.training.stopping import stop_between_steps
    for name in ("metrics.jsonl", "wandb"):
        folder.file(name)
    total = min(len(data) * config.train.epochs, config.train.steps or len(data) * config.train.epochs)
    growth = GramGrowth(model, plan.parameters, images_to_input(data.images[:4], *input_scale_shift(model)), total)
    run_config = config.model_dump(mode="json")
    with Monitor(config.monitor, folder.path, config.run_name, run_config, journal.say) as monitor, \
            stop_between_steps() as check_stop, \
            progress("training", total, journal.console) as bar:
        def on_step(step: int, loss: float) -> None:
            bar.step(step, loss)
            monitor.log(step, loss=loss, **{f"GramLowRank/block_{block}/{name}": value
                                            for block, norms in growth.after(step + 1).items()
                                            for name, value in norms.items()})
            check_stop()
            check()

        def on_resume(losses: np.ndarray) -> None:
            bar.resume(losses)
            monitor.resume(losses)
        result = finetune(model, plan, data, config.train, checkpoint=folder.file(TRAINING), on_step=on_step,
                          on_resume=on_resume, warn=journal.say)
    return [float(v) for v in result.losses], growth.rows


def recipe_facts(config: RunConfig) -> dict[str, str]:
    """How the fine-tuning was done, for the report."""
    t = config.train
    rate = f"{t.lr:g}" if t.schedule == "constant" else f"{t.lr:g}, {t.schedule} to {t.min_lr:g}"
    warmup = f", warm-up over {t.warmup:.0%} of the steps" if t.warmup else ""
    augment = "" if t.augment == "off" else f", augmentation: {t.augment}"
    passes = f"{t.epochs} passes" if t.epochs > 1 else "1 pass"
    own = t.changed("lr", "schedule", "epochs", "warmup", "min_lr", "augment", "momentum")
    why = "" if own else "; the default, the best of coarse readings on three tasks (docs/results.md)"
    return {"recipe": f"{passes}, learning rate {rate}{warmup}{augment}{why}"}


def prove(model: nn.Module, plan: UpdatePlan, data: Dataset, compiled: Compiled, config: RunConfig, folder: RunFolder,
          journal: Journal, go_on: GoOn) -> tuple[Measured, Validation]:
    """Record a few steps in PyTorch, or take those of `train.trace`; take the same steps in C, measure and compare.
    model: a copy, left as it was.

    go_on: called after every step of either; raises when the proof is no longer wanted.
    """
    from algorithm import record_trace
    from algorithm.training.schedule import learning_rates
    from algorithm.training.trace import load_trace_of
    from runtime.simulator import Simulator
    from runtime.validate import replay
    steps = min(config.train.trace_steps, config.train.steps or len(data), len(data))
    path = folder.file("trace.safetensors")
    with journal.stage("trace"):
        if config.train.trace is not None:
            trace = load_trace_of(config.train.trace, model, plan)
            trace.save(path)
        else:
            lrs = learning_rates(config.train, len(data))[:steps]
            trace = record_trace(model, plan, data.images[:steps], data.labels[:steps], lrs, config.train.momentum, path,
                                 on_step=lambda *_: go_on())
    with journal.stage("build"):
        simulator = Simulator(folder.path / "c", compiled.program, build_of(config))
    with simulator:
        with journal.stage("measure"):
            measured = simulator.measure(trace.images[0], int(trace.labels[0]), float(trace.lrs[0]))
        with journal.stage("replay"):
            validation = replay(simulator, trace, lambda *_: go_on())
    journal.say(f"proven: the C code computes what PyTorch computes, over {validation.steps} steps" if validation.passed
                else f"not proven: {'; '.join(validation.failures()[:3])}")
    return measured, validation


def frontier(found: SearchResult, plan: UpdatePlan, compilers: Compilers, compiled: Compiled, momentum: float,
             journal: Journal, go_on: GoOn) -> list[dict[str, Any]]:
    """The Pareto front RAM x multiply-accumulates x trained parameters over the plans considered, for the report."""
    from compilation.frontier import Point, pareto_front, points

    def of(candidate: UpdatePlan, trained: int, count: int) -> list[Point]:
        go_on()
        planner = compilers.of(candidate).planner(selections(candidate), momentum)
        return list(points(planner, trained, candidate.describe(), count))

    with journal.stage("Pareto front"):
        others = [c for c in found.tried if c.bytes and c.plan is not plan][-4:]
        candidates = [p for c in others for p in of(c.plan, c.trained_parameters, 2)]
        candidates += of(plan, compiled.trained_parameters, 6)
        chosen = Point(compiled.memory.total, compiled.macs, compiled.trained_parameters, plan.describe(), chosen=True)
        return [asdict(p) for p in pareto_front([*candidates, chosen])]


def build_of(config: RunConfig) -> Build:
    """How the C is built for this machine."""
    from runtime.toolchain import Build
    return Build(compiler=config.compile.compiler, optimise=config.compile.optimize)


if __name__ == "__main__":
    sys.exit(main())
