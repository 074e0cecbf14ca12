"""A configuration from layers: files with their includes, flags, overrides. Later wins; what can mean nothing is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithm import ancestor
from algorithm.data.config import FROM_A_FOLDER, READ_BY
from algorithm.errors import ConfigError
from algorithm.schema import Section, nearest, one_line, section_of, without_aliases
from algorithm.sparse.config import CHOICES, unread
from algorithm.textfile import parse_yaml, read_mapping

Tree = dict[str, Any]
Translate = Callable[[Tree, str], Tree]  # what a file holds, and where that stands, for errors -> sections
INSTEAD = (("schedule", ("epochs",), ("total_steps",)), ("schedule", ("warmup_epochs",), ("warmup_steps",)),
           ("optim", ("lr",), ("base_lr", "lr_base_size", "lr_base_scale")))  # of a recipe: either takes the other's place
OF_BATCHES = ("mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "mixup_mode", "smoothing", "crop_pct")
IMPLIED_BY = {"file": ("file",), "rule": ("rule",), "auto": ("merit", "weights")}  # naming these chooses them


def read_config_file(path: str | Path, base: Path, root: type[Section], _seen: tuple[Path, ...] = (),
                     translate: Translate | None = None) -> Tree:
    """A YAML file over its `include` (a path or a list, relative to the file), as a mapping. Raises ConfigError.

    The ancestor's sections (`backward_config` and its like) are read, too, and come back as ours.
    base: the folder of shipped configurations, for a path that does not exist by itself. translate: for files that may
    be written in other words than the sections'.
    """
    path = Path(path)
    if not path.exists() and (base / path).is_file():
        path = base / path
    if path.resolve() in _seen:
        raise ConfigError(f"config file {path} includes itself")
    raw = read_mapping(path, "config file", ConfigError, may_be_empty=True)
    include = raw.pop("include", [])
    include = [include] if isinstance(include, str) else include
    if not isinstance(include, list) or not all(isinstance(i, str) for i in include):
        raise ConfigError(f"config file {path}: include must be a path or a list of paths")
    if translate:
        raw = translate(raw, f"config file {path}")
    raw = _checked(ancestor.translate(raw, root, f"config file {path}"), root, f"config file {path}")
    merged: Tree = {}
    for other in include:
        merged = over(merged, read_config_file(path.parent / other, base, root, (*_seen, path.resolve()), translate))
    return over(merged, raw)


def command_line(values: Mapping[str, Any], overrides: Sequence[str], root: type[Section]) -> Tree:
    """One layer of `values` by dotted key, as they are, and of "section.key=value" overrides over them, read as YAML."""
    tree: Tree = {}
    for key, value in values.items():
        _set(tree, key, value)
    given: set[str] = set()
    for item in overrides:
        key, equals, text = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"{item!r} is not an override: write section.key=value, for example train.lr=0.01")
        if key.partition(".")[0] in ancestor.NAMES:
            raise ConfigError(f"override {key!r} is a key of the ancestor, which is read from --config files alone: write "
                              "it there, or ours here (plan.rule.n_weight_update, model.img_size, train.lr, ...)")
        if key in given:
            raise ConfigError(f"override {key!r} is given twice: leave one out")
        given.add(key)
        try:
            value = parse_yaml(text)
        except ValueError as error:
            raise ConfigError(f"override {item!r} has a malformed value: {one_line(error)}") from None
        _set(tree, key, value)
    return _checked(tree, root, "the command line")


def _set(tree: Tree, dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for part in parents:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {dotted!r}: {part!r} has been given a value that holds no keys")
    tree[last] = value


def _checked(tree: Tree, root: type[Section], where: str) -> Tree:
    """The layer under the sections' own names of keys, all of which exist. Raises ConfigError."""
    try:
        tree = without_aliases(tree, root)
    except ValueError as error:
        raise ConfigError(f"{error} (in {where})") from None
    check_keys(tree, root, where)
    return tree


def check_keys(tree: Tree, section: type[Section], where: str, prefix: str = "") -> None:
    """Raise ConfigError at a key that the section does not have, and at a section that is no mapping."""
    for key, value in tree.items():
        if key not in section.model_fields:
            hint = nearest(key, [*section.model_fields, *section.aliases])
            raise ConfigError(f"unknown configuration key {prefix + key!r}{hint} in {where}")
        inner = section_of(section.model_fields[key].annotation)
        if inner is not None:
            if not isinstance(value, dict):
                raise ConfigError(f"configuration key {prefix + key!r} is a section of keys, found {str(value)[:40]!r} in "
                                  f"{where}")
            check_keys(value, inner, where, f"{prefix}{key}.")


def over(base: Tree, layer: Tree) -> Tree:
    """`layer` over `base`, both checked by `check_keys`.

    Where the layer chooses another kind of plan, another data set, another policy of augmentation, turns an addition off, or
    gives the length or the learning rate of a recipe in another way, what the base gave for the one before goes. Where it
    names a plan's file or rule, or a data folder, and chooses nothing, it chooses that.
    """
    base = {k: dict(v) if isinstance(v, dict) else v for k, v in base.items()}
    layer = {k: dict(v) if isinstance(v, dict) else v for k, v in layer.items()}
    for adjust in (_plan, _data, _additions, _recipe, _policy):
        adjust(base, layer)
    return _merge(base, layer)


def _plan(base: Tree, layer: Tree) -> None:
    plan = layer.get("plan", {})
    if "choose" not in plan:
        implied = next((c for c, names in IMPLIED_BY.items() if any(plan.get(n) for n in names)), None)
        if implied is None:
            return
        plan["choose"] = implied
    dropped = unread(plan["choose"]) if plan["choose"] in CHOICES else []
    base["plan"] = {k: v for k, v in base.get("plan", {}).items() if k not in dropped}


def _data(base: Tree, layer: Tree) -> None:
    data, known = layer.get("data", {}), base.get("data", {})
    if data.get("data_root") is not None and "name" not in data and known.get("name") not in FROM_A_FOLDER:
        data["name"] = "imagefolder"
    if "name" in data:
        unread = {option for option, sources in READ_BY.items() if data["name"] not in sources}
        base["data"] = {k: v for k, v in known.items() if k not in unread}


def _additions(base: Tree, layer: Tree) -> None:
    for key in ("gram", "lora"):
        if layer.get("model", {}).get(key, {}).get("enabled") is False:
            base.get("model", {}).pop(key, None)


def _recipe(base: Tree, layer: Tree) -> None:
    for part, one, other in INSTEAD:
        given = layer.get("recipe", {}).get(part, {})
        for mine, theirs in ((one, other), (other, one)):
            known = base.get("recipe", {}).get(part, {})
            if any(given.get(n) is not None for n in mine) and any(n in known for n in theirs):
                base["recipe"] = {**base["recipe"], part: {k: v for k, v in known.items() if k not in theirs}}


def _policy(base: Tree, layer: Tree) -> None:
    """What any policy of augmentation goes with stays."""
    policy, known = layer.get("recipe", {}).get("augment", {}).get("policy"), base.get("recipe", {}).get("augment", {})
    if policy is not None and policy != known.get("policy"):
        base["recipe"] = {**base.get("recipe", {}), "augment": {k: v for k, v in known.items() if k in OF_BATCHES}}


def _merge(base: Tree, layer: Tree) -> Tree:
    out = dict(base)
    for key, value in layer.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out
