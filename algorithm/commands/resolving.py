"""From flags, YAML files and overrides to one `Experiment`. Later wins; the command line wins over files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithm import ancestor
from algorithm.commands.flags import ALL, BY_NAME, Flag, Values
from algorithm.commands.timm_files import NOT_HERE, asks_nothing
from algorithm.config import CONFIGS
from algorithm.data.config import OF_IMAGE_FILES, DataConfig
from algorithm.data.imagenet import data_files
from algorithm.data.names import data_of_timm_name
from algorithm.errors import ConfigError
from algorithm.experiment import Experiment
from algorithm.layers import Tree, command_line, over, read_config_file
from algorithm.models.sources import SHORT_NAMES, timm_name
from algorithm.recipes.names import models
from algorithm.schema import nearest, parse

FOLDER = ("folder", "imagefolder", "image_folder")  # timm's names of a data set that is a folder


def translate(raw: Tree, where: str) -> Tree:
    """What a YAML file holds, its flags by name put into their sections. Raises ConfigError.

    A key that is a section of `Experiment` and holds a mapping is one; any other is a flag (`model: s16`, `batch-size: 8`).
    The ancestor's keys are left as they are, for `algorithm.ancestor`.
    """
    others = {k: v for k, v in raw.items() if k in ancestor.NAMES}
    if set(others) == {"resume"}:           # the flag's
        others = {}
    raw = {k: v for k, v in raw.items() if k not in others}
    sections = {k: v for k, v in raw.items() if k in Experiment.model_fields and isinstance(v, dict)}
    args = {k.replace("-", "_"): v for k, v in raw.items() if k not in sections}
    if "data" in args:                      # timm's positional folder
        args.setdefault("data_dir", args.pop("data"))
    asked = {k: v for k, v in args.items() if not asks_nothing(k, v, args)}
    for name in asked:
        if name not in BY_NAME:
            if name in NOT_HERE:
                raise ConfigError(f"{name}: {asked[name]} in {where} has no meaning here: leave it out")
            raise ConfigError(f"unknown key {name!r}{nearest(name, [*Experiment.model_fields, *BY_NAME])} in {where}")
    try:
        flat = values_of([(BY_NAME[name], value) for name, value in asked.items()])
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return {**over(command_line(flat, [], Experiment), sections), **others}


def values_of(given: Sequence[tuple[Flag, Any]], below: Tree | None = None) -> Values:
    """One layer of values by dotted key, for over `below`. Raises ConfigError where two flags set one key differently."""
    off = {k: v for flag, value in given if value is False for k, v in flag.values(value).items()}
    out: Values = {}
    by: dict[str, Flag] = {}
    for flag, value in given:
        if value is False:
            continue
        for key, setting in flag.values(value).items():
            if key in out and out[key] != setting:
                raise ConfigError(f"{by[key].shown} and {flag.shown} both set {key}: leave one out")
            out[key], by[key] = setting, flag
    return _timms_rules({**off, **out}, {flag.dest for flag, value in given if value is not False}, below or {})


def _timms_rules(values: Values, given: set[str], below: Tree) -> Values:
    """What timm makes of a flag beyond its own key, where nothing else was said, here or in the layers below."""
    if "dataset" in given:
        known = below.get("data", {}).get("data_root") if values["data.name"] in FOLDER else None
        section = data_of_timm_name(values["data.name"], values.get("data.data_root", known))
        values |= {f"data.{k}": section[k] for k in ("name", "data_root") if k in section}
    if {"model_ema_decay", "model_ema_warmup"} & given:
        values.setdefault("recipe.ema.enabled", True)
    if "kd_model_name" in given and "tau" not in below.get("recipe", {}).get("distill", {}):
        values.setdefault("recipe.distill.tau", 4.0)
    if "lr_base" in given and "recipe.optim.lr" not in values:
        optim = below.get("recipe", {}).get("optim", {})
        opt = str(values.get("recipe.optim.opt", optim.get("opt", ""))).lower()
        scale = "sqrt" if any(o in opt for o in ("ada", "lamb")) else "linear"
        for key, value in (("lr_base_size", 256), ("lr_base_scale", scale)):
            if key not in optim:
                values.setdefault(f"recipe.optim.{key}", value)
    return values


def tree_of(files: Sequence[str | Path], given: Mapping[str, Any], overrides: Sequence[str]) -> Tree:
    """The layers of a command line merged: config files in order, flags (by `dest`, None = not given), overrides."""
    tree: Tree = {}
    for path in files:
        tree = over(tree, read_config_file(path, CONFIGS, Experiment, translate=translate))
    flags = values_of([(flag, given[flag.dest]) for flag in ALL if given.get(flag.dest) is not None], tree)
    return over(tree, command_line(flags, overrides, Experiment))


def experiment_of(tree: Tree) -> Experiment:
    """Raises ConfigError with one line."""
    return parse(Experiment, tree)


def complete(tree: Tree) -> Experiment:
    """The experiment, with what was left open: as many classes as the data have, the model's own image size (timm is asked
    where only it knows). Raises ConfigError, DataError."""
    experiment = experiment_of(tree)
    model = dict(tree.get("model", {}))
    if "num_classes" not in model:
        model["num_classes"] = count_classes(experiment.data) or experiment.model.num_classes
    if "name" in model and "img_size" not in model and model["name"] not in SHORT_NAMES:
        model["img_size"] = own_size(model["name"])
    return experiment_of({**tree, "model": model})


def count_classes(data: DataConfig) -> int | None:
    """How many the data have, as far as names of files tell. Raises DataError."""
    if data.known_classes is None and data.name in OF_IMAGE_FILES:
        return len(data_files(data, lambda _: None)[2])     # what there is to warn of, loading says
    return data.known_classes


def own_size(name: str) -> int:
    """Pixels a side that timm made a model for; a name that it does not have is refused before it is loaded. Raises
    ConfigError."""
    known, short = models(), timm_name(name)
    if short.partition(".")[0] not in known:
        raise ConfigError(f"model.name={name!r} is no model of timm{nearest(short, [*SHORT_NAMES, *known])}")
    from algorithm.models.torchvision_shim import timm
    cfg = timm.get_pretrained_cfg(short)
    if cfg is None:
        raise ConfigError(f"timm does not say for which images {name!r} is made: give --img-size")
    return int(cfg.input_size[-1])
