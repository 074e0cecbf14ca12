"""python -m algorithm COMMAND: train by recipe, validate, infer, analyze, ablate. (The main job is run_vit_training.py.)"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from algorithm.errors import AlgorithmError
from algorithm.journal import refuse
from algorithm.schema import nearest

COMMANDS = {"train": "train a vision transformer by a recipe, on a GPU or CPU, on one process or many (torchrun)",
            "validate": "a checkpoint on a data set: top-1, top-5, by class, confusion",
            "infer": "what a checkpoint sees in an image, or in a folder of them",
            "analyze": "spectrum: singular values of the weights; artifacts: patch tokens of high norm",
            "ablate": "ranks of the Gram residual x update plans x seeds, against the same without it"}
GO_ON = ("train", "ablate")
EXIT_REFUSED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 130
EPILOG = "commands\n" + "\n".join(f"  {name:10}{about}" for name, about in COMMANDS.items()) + """

`python -m algorithm COMMAND --help` teaches its options; docs/training.md shows them at work.
exit status: 0 done, 1 refused, 2 no such command or flag, 130 stopped (the same command goes on)
"""


def command_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m algorithm", description=__doc__, epilog=EPILOG, allow_abbrev=False,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("command", metavar="COMMAND", help="one of those below")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; what argparse itself answers (`--help`, a mistyped flag) ends the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        command_parser().parse_args([name])
    if name not in COMMANDS:
        refuse(f"a command is needed first: {', '.join(COMMANDS)}" if not name or name.startswith("-") else
               f"unknown command {name!r}{nearest(name, list(COMMANDS))}")
        return EXIT_USAGE
    command = importlib.import_module(f"algorithm.commands.{name}")
    options = command.parser().read(arguments[1:])
    try:
        return int(command.run(options))
    except AlgorithmError as error:
        refuse(error, _who("error"))
        return EXIT_REFUSED
    except OSError as error:
        refuse(f"{error.filename or 'a file'} cannot be read or written: {error.strerror or error}", _who("error"))
        return EXIT_REFUSED
    except KeyboardInterrupt:
        refuse("the same command goes on with what had begun" if name in GO_ON else "nothing was changed", _who("stopped"))
        return EXIT_STOPPED


def _who(what: str) -> str:
    """With the process's number, where there are several."""
    return f"{what} (process {os.environ['RANK']})" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else what


if __name__ == "__main__":
    sys.exit(main())
