"""What `python -m runtime` does with a run folder: read it, build and measure its C code, replay the recorded run.

Everything that can be refused is refused before anything is built.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors import SafetensorError
from safetensors.numpy import load_file

from algorithm.errors import AlgorithmError
from compilation.errors import CompilationError
from compilation.program import Program
from compilation.program_file import read_program
from runtime.codegen.check import check_folder
from runtime.codegen.generate import STACK_BYTES, find_interface, generate
from runtime.codegen.layout import lay_out
from runtime.errors import RefusedError, RuntimeStageError
from runtime.simulator import Measured, Simulator
from runtime.toolchain import Build, available_builds
from runtime.validate import RecordedRun, replay, require_fit
from runtime.verdict import Outcome, Validation


def load(folder: Path, steps: int | None = None) -> tuple[Program, RecordedRun | None]:
    """Program and trace of a run folder; of a folder that `python -m compilation` wrote, the C is emitted first.

    Raises RefusedError where something is missing, damaged, or does not belong together.
    """
    try:
        program = read_program(folder / "program.json")
        trace = read_trace(folder / "trace.safetensors")
        layout, interface = lay_out(program), find_interface(program)
        if trace is not None:
            require_images(program, trace)
            require_fit(program, layout.trained, trace, steps)
        if (folder / "values.safetensors").is_file():
            generate(program, read_values(folder / "values.safetensors"), folder / "c")
        check_folder(folder / "c", layout, interface.classes, interface.image.bytes)
    except (RuntimeStageError, AlgorithmError, CompilationError) as error:
        raise RefusedError(f"{folder}: {error}") from None
    return program, trace


def read_trace(path: Path) -> RecordedRun | None:
    if not path.is_file():
        return None
    from algorithm.training.trace import Trace  # PyTorch: only where it is needed
    return Trace.load(path)


def read_values(path: Path) -> dict[str, np.ndarray]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"{path.name} is damaged: {error}") from None


def require_images(program: Program, trace: RecordedRun) -> None:
    """Raises RefusedError unless the trace's images and labels are what the Program reads."""
    interface = find_interface(program)
    kind, shape = interface.image.element.numpy, tuple(interface.image.shape)
    images, labels = trace.images, trace.labels
    if images.dtype != kind or images[0].size != interface.image.bytes // kind.itemsize:
        raise RefusedError(f"the trace's images are {images.dtype} {images.shape[1:]}, the Program reads {kind} {shape}: "
                           "they belong to different models")
    if labels.min() < 0 or labels.max() >= interface.classes:
        raise RefusedError(f"the trace's labels reach from {labels.min()} to {labels.max()}, the Program has "
                           f"{interface.classes} classes: they belong to different models")


def figures(program: Program, m: Measured, v: Validation | None) -> Table:
    """Measured figures and errors."""
    table = Table(show_header=False)
    planned = program.arena_bytes
    table.add_row("RAM measured", f"{m.ram_bytes:,} bytes with {STACK_BYTES:,} of stack ({m.stack_bytes:,} used)")
    table.add_row("arena", f"{m.arena_bytes:,} bytes measured, {planned:,} planned",
                  style=None if planned == m.arena_bytes else "red")
    table.add_row("flash", f"{m.flash_bytes:,} bytes")
    table.add_row("multiply-accumulates", f"{m.macs:,} a step, {m.predict_macs:,} a prediction")
    if v is None:
        return table
    table.add_row("loss error", f"{v.loss_max_rel_error:.2e} (float32 PyTorch {v.loss_max_rel_error_float32:.2e})")
    if v.tensors:
        table.add_row("weight error", f"{v.weight_max_abs_error:.2e} (float32 PyTorch "
                                      f"{v.weight_max_abs_error_float32:.2e}) over {len(v.tensors)} tensors")
    return table


def compare_builds(folder: Path, program: Program, trace: RecordedRun, steps: int, console: Console) -> bool:
    """Runs every build that this machine has; True when all give the same bits."""
    bits: dict[str, bytes] = {}
    for name, build in available_builds().items():
        start = time.perf_counter()
        with Simulator(folder / "c", program, build) as simulator:
            result = replay(simulator, trace, steps=steps)
            bits[name] = result.losses.tobytes() + b"".join(w.tobytes() for w in simulator.trained().values())
        same = bits[name] == next(iter(bits.values()))
        console.print(f"  {name:<18} {'same bits' if same else 'OTHER BITS'}  {time.perf_counter() - start:.1f} s",
                      style=None if same else "red")
    return len(set(bits.values())) == 1


def prove(folder: Path, build: Build, steps: int | None, builds: bool) -> int:
    """Returns 0 when the C code is proven (or the losses asked for agree, or there is no run to compare with), else 1.

    Raises RefusedError before anything is built, RuntimeStageError where the C code cannot be built or misbehaves.
    """
    console = Console(markup=False, highlight=False, soft_wrap=True)      # names may hold square brackets
    program, trace = load(folder, steps)
    if trace is None and (steps or builds):
        raise RefusedError(f"{folder} has no recorded run: --steps and --builds have nothing to replay")
    result = None
    start = time.perf_counter()
    with Simulator(folder / "c", program, build) as simulator:
        console.print(f"built in {time.perf_counter() - start:.1f} s")
        if trace is None:
            measured = simulator.measure(some_image(simulator))
        else:
            measured = simulator.measure(trace.images[0], int(trace.labels[0]))
            columns = (TextColumn("replaying the trace"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with Progress(*columns, console=console, transient=True) as bar:
                task = bar.add_task("", total=len(trace.losses64))
                result = replay(simulator, trace, lambda done, of: bar.update(task, completed=done, total=of), steps)
    console.print(figures(program, measured, result))
    failures = result.failures() if result else []
    if measured.arena_bytes != program.arena_bytes:
        failures.append(f"arena planned {program.arena_bytes} bytes, measured {measured.arena_bytes}")
    if measured.undefined:
        failures.append(f"the bare-metal build lacks {', '.join(sorted(measured.undefined))}")
    if builds and trace is not None and result is not None and \
            not compare_builds(folder, program, trace, result.steps, console):
        failures.append("builds give different bits")
    for failure in failures[:5]:
        console.print(failure, style="red")
    conclude(folder, result, bool(failures), console)
    return 1 if failures else 0


def some_image(simulator: Simulator) -> np.ndarray:
    """Where no image was recorded: a random one, for what is measured does not depend on it."""
    image = simulator.interface.image
    return np.random.default_rng(0).integers(0, 256, image.shape).astype(image.element.numpy)


def conclude(folder: Path, result: Validation | None, failed: bool, console: Console) -> None:
    """The last line: what was shown, and what was not."""
    if failed:
        differs = result is not None and result.outcome is Outcome.DIFFERS
        console.print("differs: not proven" if differs else "not proven", style="red")
    elif result is None:
        console.print(f"C code in {folder / 'c'}, built and measured; nothing is proven: there is no recorded run here to "
                      "compare with (run_vit_training.py records one)")
    elif result.outcome is Outcome.AGREES:
        console.print(f"the losses agree over {result.steps} steps; the weights were not compared (leave out --steps for "
                      "the proof)", style="green")
    else:
        console.print(f"proven: the C code computes what PyTorch computes over {result.steps} steps", style="green")
