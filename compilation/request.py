"""What the command line asks for, read and judged before anything heavy is imported."""

from __future__ import annotations

import argparse
import fnmatch
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compilation.errors import RequestError

DEFAULT_TRAIN = ("*.bias", "*norm*", "head.*")
FILES = ("program.txt", "program.json", "values.safetensors")
OWN = {*FILES, "c"}            # c/: what python -m runtime adds


@dataclass(frozen=True)
class Rule:
    """One --train: a name or pattern, and of a matrix the columns or rows from `low` to `high` (both included)."""

    text: str
    pattern: str
    axis: str = ""
    low: int = 0
    high: int = 0

    @property
    def selection(self) -> str | dict[str, list[int]]:
        return {self.axis: list(range(self.low, self.high + 1))} if self.axis else "all"

    def names(self, known: Iterable[str]) -> list[str]:
        """A name that is there as it stands, else the names that the pattern fits."""
        names = list(known)
        return [self.pattern] if self.pattern in names else [n for n in names if fnmatch.fnmatchcase(n, self.pattern)]


@dataclass(frozen=True)
class Request:
    """A checked command line. plan: of --plan, by parameter; None where the rules of --train choose."""

    model: str
    budget: int | None
    img_size: int | None
    classes: int
    shape: tuple[int, ...] | None
    float_input: bool
    rules: tuple[Rule, ...]
    plan: Mapping[str, Any] | None
    momentum: float
    output: Path

    @property
    def factory(self) -> tuple[str, str] | None:
        """(module, function), or None for a timm name."""
        module, colon, function = self.model.partition(":")
        return (module, function) if colon else None


# -- types of arguments, for argparse -------------------------------------------------------------------------
def momentum(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is no momentum: a number from 0 to below 1 is expected")
    return value


def whole(least: int, what: str) -> Any:
    """A type for whole numbers from `least` on."""
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}: a whole number from {least} on is expected")
        return int(text)
    return read


def input_shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(p.strip().isascii() and p.strip().isdigit() and int(p) > 0 for p in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape: whole numbers above 0 with commas between them are "
                                         "expected, as in 3,32,32")
    return tuple(int(p) for p in parts)


def train_rule(text: str) -> Rule:
    pattern, equals, part = text.rpartition("=") if "=" in text else (text, "", "")
    if not equals:
        return Rule(text, text)
    axis, _, span = part.partition(":")
    low, dash, high = span.partition("-")
    if not pattern or axis not in ("cols", "rows") or not dash or not (low.isascii() and low.isdigit()) \
            or not (high.isascii() and high.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=cols:A-B or NAME=rows:A-B, both numbers from 0 on")
    if int(low) > int(high):
        raise argparse.ArgumentTypeError(f"{text!r}: {axis} from {low} to {high} are none; write the smaller number first")
    return Rule(text, pattern, axis, int(low), int(high))


# -- the whole line -------------------------------------------------------------------------------------------
def check(args: argparse.Namespace) -> Request:
    """Raises RequestError, or the error of the plan or budget, for what is refused whatever the model is."""
    if not args.model.strip():
        raise RequestError("the model's name is empty: give a timm name, or module:function")
    if args.plan is not None and args.train:
        raise RequestError("--plan and --train both say what to train: give one of them")
    module, colon, function = args.model.partition(":")
    if colon and not (all(p.isidentifier() for p in module.split(".")) and function.isidentifier()):
        raise RequestError(f"{args.model!r} is no factory: write module:function, as in my_models:make_mixer")
    if colon:
        _refuse(args, "a factory, which makes the model as it is", img_size="--img_size", classes="--classes")
    else:
        _refuse(args, "a timm model, which has its own input", input="--input", float_input="--float-input")
    check_output(args.output)
    plan = None
    if args.plan is not None:
        from algorithm.sparse.plan import UpdatePlan

        plan = UpdatePlan.load(args.plan).to_dict()["parameters"]
        if not plan:
            raise RequestError(f"the plan {args.plan} trains nothing")
    budget = None
    if args.budget is not None:
        from algorithm.sparse.budgets import parse_budget

        budget = parse_budget(args.budget)
    return Request(args.model, budget, args.img_size, 10 if args.classes is None else args.classes, args.input,
                   args.float_input,
                   tuple(args.train or ()), plan, args.momentum, args.output)


def _refuse(args: argparse.Namespace, model: str, **flags: str) -> None:
    for name, flag in flags.items():
        if getattr(args, name) not in (None, False):
            raise RequestError(f"{flag} says nothing about {model}: leave it out")


def check_output(folder: Path) -> None:
    """Raise RequestError unless the folder is ours to write: new, empty, or what this command wrote before."""
    if folder.is_dir():
        found = sorted(p.name for p in folder.iterdir())
        foreign = [n for n in found if n not in OWN]
        if foreign or (found and not _compiled(folder)):
            raise RequestError(f"{folder} holds other files ({(foreign or found)[0]}): choose a new or empty folder with "
                               "--output")
    elif folder.exists() or folder.is_symlink():
        raise RequestError(f"{folder} is no folder: choose another with --output")
    above = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not above.is_dir():
        raise RequestError(f"{folder} cannot be made, because {above} is no folder: choose another with --output")
    if not os.access(above, os.W_OK | os.X_OK):
        raise RequestError(f"{above} cannot be written: choose another place with --output")


def _compiled(folder: Path) -> bool:
    """A folder of this command: all its files are there, and the text is a Program's."""
    text = folder / FILES[0]
    if not all((folder / n).is_file() for n in FILES):
        return False
    with text.open(errors="replace") as file:
        return file.read(8) == "program "
