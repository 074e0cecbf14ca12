"""python -m runtime RUN_FOLDER: build, simulate and validate the C code of an existing run folder again."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from safetensors.numpy import load_file

from compilation.errors import ProgramFileError
from compilation.program import Program
from compilation.program_file import read_program
from runtime.codegen.generate import STACK_BYTES, generate
from runtime.errors import ReportError, RuntimeStageError
from runtime.simulator import Measured, Simulator
from runtime.toolchain import Build, available_builds
from runtime.validate import RecordedRun, replay
from runtime.verdict import Outcome, Validation

EPILOG = """\
what it does (a folder of `python -m compilation` has no recorded run: its C is emitted, built and measured)
  1. builds RUN_FOLDER/c for this machine (with guard bytes around every block of memory) and for a bare Cortex-M7
  2. measures RAM, flash, stack and multiply-accumulates on a real step, and compares with program.json
  3. replays trace.safetensors: every loss and every trained weight against float64 PyTorch
  with --builds also: the same run built at -O0, for the baseline CPU, and by gcc or clang where present, must give the
  same bits

examples
  python -m runtime runs/latest                      everything, with the compiler from the ziglang package
  python -m runtime runs/latest --compiler gcc       with a system compiler
  python -m runtime runs/latest --builds --steps 5   bit equality of all builds over 5 steps

exit status: 0 proven, 1 the C run differs or misbehaves, 2 the folder or the arguments are wrong
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m runtime", description=__doc__, epilog=EPILOG,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", metavar="RUN_FOLDER", type=Path,
                   help="holds c/, program.json and trace.safetensors (runs/latest points at the last run)")
    p.add_argument("--compiler", default="zig", metavar="NAME", help="zig (default), gcc, clang or a path")
    p.add_argument("--optimise", default="-O3", metavar="FLAG", choices=["-O0", "-O1", "-O2", "-O3"],
                   help="-O0 to -O3 (default)")
    p.add_argument("--cpu", default="native", choices=["native", "baseline"], help="instruction set of the host build")
    p.add_argument("--steps", type=int, metavar="N", help="only the first N steps: losses only, no weights compared")
    p.add_argument("--builds", action="store_true", help="also compare all builds of this machine bit by bit")
    return p


def load(folder: Path) -> tuple[Program, RecordedRun | None]:
    """Program and trace of a run folder; of a folder that `python -m compilation` wrote, the C is emitted first.

    Raises ReportError naming what is missing.
    """
    if not (folder / "program.json").is_file():
        raise ReportError(f"{folder} is no run folder: program.json is missing (run_vit_training.py and "
                          "python -m compilation write one)")
    compiled = (folder / "values.safetensors").is_file()
    for name in () if compiled else ("trace.safetensors", "c/vit_train.c"):
        if not (folder / name).is_file():
            raise ReportError(f"{folder} is no run folder: {name} is missing (run_vit_training.py writes one)")
    from algorithm.training.trace import Trace  # PyTorch: only where it is needed
    try:
        program = read_program(folder / "program.json")
        if compiled:
            generate(program, load_file(folder / "values.safetensors"), folder / "c")
        trace = folder / "trace.safetensors"
        return program, Trace.load(trace) if trace.is_file() else None
    except ProgramFileError as error:
        raise ReportError(str(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{folder} is damaged: {error}") from None


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
            bits[name] = result.losses.tobytes() + b"".join(w.tobytes() for w in result.final.values())
        same = bits[name] == next(iter(bits.values()))
        console.print(f"  {name:<18} {'same bits' if same else '[red]OTHER BITS[/]'}  "
                      f"{time.perf_counter() - start:.1f} s")
    return len(set(bits.values())) == 1


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    console = Console()
    try:
        program, trace = load(options.folder)
        build = Build(options.compiler, options.optimise, options.cpu)
        start = time.perf_counter()
        with Simulator(options.folder / "c", program, build) as simulator:
            console.print(f"built in {time.perf_counter() - start:.1f} s")
            if trace is None:
                shape = simulator.interface.image.shape
                image = np.random.default_rng(0).integers(0, 256, shape)
                console.print(figures(program, simulator.measure(image.astype(
                    {"u8": np.uint8, "f32": np.float32}[simulator.interface.image.dtype])), None))
                console.print(f"C code in {options.folder / 'c'}; no recorded run here to compare with")
                return 0
            measured = simulator.measure(trace.images[0], int(trace.labels[0]))
            columns = (TextColumn("replaying the trace"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            with Progress(*columns, console=console, transient=True) as bar:
                task = bar.add_task("", total=len(trace.losses64))
                result = replay(simulator, trace, lambda done, of: bar.update(task, completed=done, total=of),
                                options.steps)
        console.print(figures(program, measured, result))
        failures = result.failures()
        if measured.arena_bytes != program.arena_bytes:
            failures.append(f"arena planned {program.arena_bytes} bytes, measured {measured.arena_bytes}")
        if measured.undefined:
            failures.append(f"the bare-metal build lacks {', '.join(sorted(measured.undefined))}")
        if options.builds and not compare_builds(options.folder, program, trace, result.steps, console):
            failures.append("builds give different bits")
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeStageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for failure in failures[:5]:
        console.print(f"[red]{failure}[/]")
    if failures:
        console.print(f"[red]{'not proven' if result.outcome is not Outcome.DIFFERS else 'differs: not proven'}[/]")
    elif result.outcome is Outcome.AGREES:
        console.print(f"[green]the losses agree[/] over {result.steps} steps; the weights were not compared (leave out "
                      "--steps for the proof)")
    else:
        console.print(f"[green]proven:[/] the C code computes what PyTorch computes over {result.steps} steps")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
