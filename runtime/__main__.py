"""python -m runtime RUN_FOLDER: build, simulate and validate the C code of an existing run folder again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

EPILOG = """\
what it does (a folder of `python -m compilation` has no recorded run: its C is emitted, built and measured, and nothing
is proven)
  1. builds RUN_FOLDER/c for this machine (with guard bytes around every block of memory) and for a bare Cortex-M7
  2. measures RAM, flash, stack and multiply-accumulates on a real step, and compares with program.json
  3. replays trace.safetensors: every loss and every trained weight against float64 PyTorch
  with --builds also: the same run built at -O0, for the baseline CPU, and by gcc or clang where present, must give the
  same bits

examples
  python -m runtime runs/latest                        everything, with the compiler from the ziglang package
  python -m runtime runs/latest --compiler gcc -O2     with a system compiler
  python -m runtime runs/latest --builds --steps 5     bit equality of all builds over 5 steps

exit status: 0 proven (or agreed, or measured, as the last line says), 1 the C run differs or misbehaves, 2 the folder or
the arguments are wrong, 130 stopped
"""
LEVEL_OPTIONS = ("--optimise", "--optimize")


def steps(text: str) -> int:
    """A number of steps to replay."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} steps prove nothing: give 1 or more")
    return number


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m runtime", description=__doc__, epilog=EPILOG,
                                formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("folder", metavar="RUN_FOLDER", type=Path,
                   help="holds c/, program.json and trace.safetensors (runs/latest points at the last run)")
    p.add_argument("--compiler", default="zig", metavar="NAME", help="zig (default), gcc, clang or a path")
    p.add_argument("-O", *LEVEL_OPTIONS, dest="optimise", default="-O3", metavar="LEVEL",
                   help="-O0, -O1, -O2, -O3 (default) or -Os; also -O2 by itself")
    p.add_argument("--cpu", default="native", choices=["native", "baseline"], help="instruction set of the host build")
    p.add_argument("--steps", type=steps, metavar="N", help="only the first N steps: losses only, no weights compared")
    p.add_argument("--builds", action="store_true", help="also compare all builds of this machine bit by bit")
    return p


def read_arguments(arguments: list[str]) -> argparse.Namespace:
    """The options; a level may begin with a dash (`--optimise -O2`), which argparse would take for another option."""
    joined: list[str] = []
    for argument in arguments:
        if joined and joined[-1] in LEVEL_OPTIONS and argument.startswith("-O"):
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    options = parser().parse_args(joined)
    if len(options.optimise) == 1:      # of -O2 argparse hands on the 2
        options.optimise = f"-O{options.optimise}"
    return options


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    options = read_arguments(sys.argv[1:] if arguments is None else arguments)
    from runtime.errors import RefusedError, RuntimeStageError  # all imports here: --help and mistakes are answered at once
    try:
        from runtime.toolchain import Build, check_compiler
        try:
            build = Build(options.compiler, options.optimise, options.cpu)
            require_folder(options.folder)
            check_compiler(build)
        except RuntimeStageError as error:
            raise RefusedError(str(error)) from None
        from runtime.prove import prove
        return prove(options.folder, build, options.steps, options.builds)
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeStageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def require_folder(folder: Path) -> None:
    """Raises RefusedError naming what a run folder has and this one has not."""
    from runtime.errors import RefusedError
    if not folder.is_dir():
        raise RefusedError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}: give a run folder")
    compiled = (folder / "values.safetensors").is_file()
    for name in ("program.json", *(() if compiled else ("trace.safetensors", "c/vit_train.c"))):
        if not (folder / name).is_file():
            raise RefusedError(f"{folder} is no run folder: {name} is missing (run_vit_training.py and python -m "
                               "compilation write one)")


if __name__ == "__main__":
    sys.exit(main())
