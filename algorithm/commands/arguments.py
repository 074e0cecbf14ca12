"""Command lines: flags with dashes or underscores, refused with the nearest name where there is no such flag."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from algorithm.commands.flags import FLAGS
from algorithm.experiment import Experiment
from algorithm.journal import refuse
from algorithm.schema import nearest

EXIT_USAGE = 2
OVERRIDE = re.compile(rf"({'|'.join(Experiment.model_fields)})\.[\w.]+=")


class Parser(argparse.ArgumentParser):
    """Takes `--foo-bar` and `--foo_bar` for the same flag; every refusal is one line with what to do."""

    def __init__(self, command: str, about: str, epilog: str = "") -> None:
        program = f"python -m algorithm {command}"
        super().__init__(program, usage=f"{program} [flags] [section.key=value ...]", description=about, epilog=epilog,
                         allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The options; `--help` and what cannot be read end the process (0, 2)."""
        overrides, rest = _overrides([_dashed(a) for a in argv])
        options, left = self.parse_known_intermixed_args(rest)
        options.overrides = [*overrides, *getattr(options, "overrides", [])]
        if left:
            flags = [f for action in self._actions for f in action.option_strings if f.startswith("--")]
            unknown = left[0].partition("=")[0]
            self.error(f"unknown flag {unknown}{nearest(unknown, flags)}" if unknown.startswith("-") else
                       f"{left[0]!r} belongs to no flag: leave it out")
        return options

    def error(self, message: str) -> NoReturn:
        refuse(f"{message}; {self.prog} --help lists all")
        raise SystemExit(EXIT_USAGE)


def _overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """(`section.key=value` words, the others), so that `--scale 0.5 1 recipe.batch=2` takes two values."""
    of = [bool(OVERRIDE.match(a)) and not (i and argv[i - 1].startswith("-")) for i, a in enumerate(argv)]
    return [a for a, yes in zip(argv, of, strict=True) if yes], [a for a, yes in zip(argv, of, strict=True) if not yes]


def _dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def add_recipe_flags(parser: Parser, only: Sequence[str] = ()) -> None:
    """`--config`, the flags of the table (all, or those of `only`, by `dest`), and overrides."""
    parser.add_argument("--config", "-c", action="append", default=[], metavar="FILE",
                        help="YAML over the defaults, of sections or of flags by name; may be repeated, later files win; "
                        "training/strong_cifar100.yaml and the like come with the program (configs/training)")
    for title, flags in FLAGS.items():
        wanted = [flag for flag in flags if not only or flag.dest in only]
        group = parser.add_argument_group(title) if wanted else parser
        for flag in wanted:
            how: dict[str, Any] = {"action": "store_true"} if flag.on is not None else {"metavar": "X"}
            if flag.nargs is not None:
                how = {"nargs": flag.nargs, "metavar": "X"} | ({"const": flag.on} if flag.nargs == "?" else {})
            group.add_argument(*flag.names.split(), dest=flag.dest, default=None,
                               help=f"{flag.help} [{flag.keys.replace(',', ', ')}]".replace("%", "%%"), **how)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="any configuration key; wins over all")


# what evaluation reads of the table
EVALUATION = ("dataset", "data_dir", "dataset_download", "workers", "model", "variant", "num_classes", "img_size",
              "patch_size", "gp", "model_kwargs", "use_gram_lowrank_mhsa", "gram_lowrank_rank", "batch_size", "device",
              "threads", "no_amp", "crop_pct")
