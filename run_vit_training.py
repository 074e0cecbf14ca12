"""Train a vision transformer inside a memory budget, compile the training step to C, and prove that it is the same.

    python run_vit_training.py --memory_budget 2mb

One call a stage: model, data, plan, fine-tuning, compilation, C, simulation, report. `--help` teaches the options;
`docs/architecture.md` walks one image through the stages.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from algorithm import (
    RunConfig,
    UpdatePlan,
    build_model,
    choose_plan,
    evaluate,
    finetune,
    load_data,
    load_run_config,
    record_trace,
)
from algorithm.data import Dataset
from algorithm.errors import AlgorithmError
from algorithm.models.vit import input_scale_shift
from algorithm.monitor import Monitor
from algorithm.sparse.merit import SearchResult
from algorithm.training.checkpoint import save_model
from algorithm.training.progress import progress
from compilation.capture import InputSpec
from compilation.errors import BudgetError, CompilationError
from compilation.frontier import Point, pareto_front, points
from compilation.pipeline import Compiled, Compiler
from runtime.codegen.generate import generate
from runtime.errors import RuntimeStageError
from runtime.folder import RunFolder
from runtime.report import RunReport, write_report
from runtime.simulator import Simulator
from runtime.toolchain import Build
from runtime.validate import replay

EXIT_REFUSED, EXIT_OVER_BUDGET = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """The main job; returns the exit status (0 done, 1 refused, 2 the budget cannot be met)."""
    console = Console(stderr=True)
    try:
        run(load_run_config(argv), console)
    except BudgetError as error:
        console.print(f"[red]over budget:[/] {error}", soft_wrap=True, highlight=False)
        return EXIT_OVER_BUDGET
    except (AlgorithmError, CompilationError, RuntimeStageError) as error:
        console.print(f"[red]error:[/] {error}", soft_wrap=True, highlight=False)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        console.print("stopped; the same command resumes the training")
        return 130
    return 0


def run(config: RunConfig, console: Console) -> Path:
    """The whole road; returns the run folder."""
    with RunFolder.open(config.output.dir, config.run_name, config.to_yaml()) as folder:
        return walk(config, folder, console)


def walk(config: RunConfig, folder: RunFolder, console: Console) -> Path:
    """One call a stage."""
    start = time.perf_counter()

    def say(text: str) -> None:
        console.print(f"[dim]{time.perf_counter() - start:6.1f} s[/]  {text}", highlight=False)

    say(f"model {config.model.name}, weights {config.model.weights}")
    model = build_model(config.model)
    train, test = load_data(config.data, config.model.img_size, config.model.num_classes)
    height, width, channels = train.images.shape[1:]
    scale, shift = input_scale_shift(model)

    say("capturing the model and choosing the update plan")
    compiler = Compiler(model, InputSpec((channels, height, width), scale, shift), config.model.name)
    budget = config.budget.bytes
    found = choose_plan(config.plan, model, lambda plan: compiler.smallest_ram(
        selections(plan), config.train.momentum, config.compile.max_recompute), budget,
        least=lambda plan: compiler.smallest_ram(selections(plan), config.train.momentum))
    plan = require_plan(found, compiler, config)
    plan.save(folder.path / "plan.yaml")

    say(f"plan: {plan.describe()}; compiling for {budget:,} bytes of RAM")
    compiled = compiler.compile(selections(plan), budget, config.train.momentum)
    folder.write_text("program.txt", compiled.program.text())
    folder.write_text("program.json", compiled.program.to_json())
    generate(compiled.program, compiled.values, folder.path / "c")

    say(f"recording {config.train.trace_steps} steps in float32 and float64")
    steps = min(config.train.trace_steps, len(train))
    trace = record_trace(model, plan, train.images[:steps], train.labels[:steps], config.train.lr,
                         config.train.momentum, folder.path / "trace.safetensors")

    say(f"evaluating on {len(test)} held-out images")
    before = measure_accuracy(model, test, config, "before")
    say(f"accuracy before {before:.1%}; fine-tuning on {len(train)} images")
    losses = train_model(model, plan, train, config, folder.path)
    after = measure_accuracy(model, test, config, "after")
    say(f"accuracy after {after:.1%}")
    save_model(model, folder.path / "checkpoint.safetensors", plan=plan.to_dict(), accuracy=after)

    say("building the C code and replaying the trace")
    with Simulator(folder.path / "c", compiled.program,
                   Build(compiler=config.compile.compiler, optimise=config.compile.optimize)) as simulator:
        measured = simulator.measure(trace.images[0], int(trace.labels[0]), config.train.lr)
        with progress("C steps", steps) as bar:
            validation = replay(simulator, trace, lambda done, _: bar.done(done))

    report = RunReport(
        config.run_name, compiled.program, measured, validation, compiled.bound, compiled.trained_parameters,
        plan.to_dict(), budget, before, after, losses, compiled.macs_without_recompute, compiled.schedule,
        frontier(found, plan, compiler, compiled, config.train.momentum))
    write_report(folder.path, report, Console())
    done = folder.finish()
    say(f"report: {done / 'report.html'}")
    validation.require()
    return done


def selections(plan: UpdatePlan) -> dict[str, str | dict[str, list[int]]]:
    """The plan as the plain data that the compiler reads."""
    parameters: dict[str, str | dict[str, list[int]]] = plan.to_dict()["parameters"]
    return parameters


def require_plan(found: SearchResult, compiler: Compiler, config: RunConfig) -> UpdatePlan:
    """The plan that fits, or the refusal: smallest figure, what binds it, nearest plan."""
    if found.best:
        return found.best.plan
    asked = found.tried[0] if config.plan.choose != "auto" else found.smallest
    if asked is None or asked.bytes is None:
        raise BudgetError(f"no update plan can be compiled within {found.budget:,} bytes", 0, "")
    schedule = compiler.planner(selections(asked.plan), config.train.momentum).smallest()
    nearest = found.nearest or (None if asked is found.smallest else found.smallest)
    fits = f"{nearest.plan.describe()} ({nearest.bytes:,} bytes)" if nearest and nearest.bytes else None
    raise compiler.refusal(asked.plan.describe(), schedule, found.budget, fits)


def measure_accuracy(model: object, data: Dataset, config: RunConfig, when: str) -> float:
    """Top-1 on held-out images, with progress."""
    with progress(f"evaluating {when}", len(data)) as bar:
        return evaluate(model, data, config.train.eval_batch, bar).accuracy  # type: ignore[arg-type]


def train_model(model: object, plan: UpdatePlan, data: Dataset, config: RunConfig, folder: Path) -> list[float]:
    """Fine-tune in place with the device's updates; resumes from the run folder. Returns the losses."""
    total = len(data) * config.train.epochs
    with Monitor(config.monitor, folder, config.run_name) as monitor, \
            progress("training", min(total, config.train.steps or total)) as bar:
        def on_step(step: int, loss: float) -> None:
            bar.step(step, loss)
            monitor.log(step, loss=loss)
        result = finetune(model, plan, data, config.train,  # type: ignore[arg-type]
                          checkpoint=folder / "training.safetensors", on_step=on_step)
    return [float(v) for v in result.losses]


def frontier(found: SearchResult, plan: UpdatePlan, compiler: Compiler, compiled: Compiled,
             momentum: float) -> list[dict[str, object]]:
    """The Pareto front RAM x multiply-accumulates x trained parameters over the plans considered, for the report."""
    def of(candidate: UpdatePlan, trained: int, count: int) -> list[Point]:
        return list(points(compiler.planner(selections(candidate), momentum), trained, candidate.describe(), count))

    others = [c for c in found.tried if c.bytes and c.plan is not plan][-4:]
    candidates = [p for c in others for p in of(c.plan, c.trained_parameters, 2)]
    candidates += of(plan, compiled.trained_parameters, 6)
    chosen = Point(compiled.memory.total, compiled.macs, compiled.trained_parameters, plan.describe(), chosen=True)
    return [asdict(p) for p in pareto_front([*candidates, chosen])]


if __name__ == "__main__":
    sys.exit(main())
