"""Checkpoints of a training by recipe: one safetensors file each, whole or not at all, nothing pickled.

`<work folder>/checkpoints/step-00001000.safetensors` holds the weights under their plain names (matrices whole, so that
`model.weights=FILE` and timm load them), and beside them, under names with a slash, what the training goes on with:
`ema/<weight>`, `optim/...`, `watch/...`, `dynamic/<weight>`. Its header has the rest as JSON: the update, the resolved
experiment, the classes, the plan in force, and the state of optimiser, scaler, schedule and monitor. `latest` and `best`
are other names of such files. Random states need none: each image's and each micro-batch's numbers follow from the seed
and its update.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from algorithm.errors import CheckpointError
from algorithm.experiment import differences
from algorithm.recipes.state import unpack
from algorithm.training.checkpoint import read_safetensors, set_aside, write_safetensors

FORMAT = "vit-recipe-1"
FOLDER, LATEST, BEST, SUFFIX = "checkpoints", "latest", "best", ".safetensors"
EMA, OPTIM, DYNAMIC, WATCH = "ema/", "optim", "dynamic/", "watch"
PART = ".plan_part"     # the trained slice of a weight, which the whole weight holds as well
Warn = Callable[[str], None]


@dataclass
class Checkpoint:
    """What a file says. update: how many are made. tensors: all of them by their names in the file."""

    path: Path
    update: int
    experiment: dict[str, Any]
    classes: list[str]
    plan: dict[str, Any]
    best: float | None
    packed: dict[str, Any]
    tensors: dict[str, Tensor]

    def state(self, key: str) -> Any:
        """Of "optim", "scaler", "schedule" or "watch". Raises CheckpointError."""
        try:
            return unpack(self.packed[key], self.tensors)
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.path}: its state of {key} is not whole ({error}): take another checkpoint"
                                  ) from None

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """The weights by their names in the model; with EMA those of the moving average."""
        return {n[len(prefix):]: t for n, t in self.tensors.items() if n.startswith(prefix) and "/" not in n[len(prefix):]}


def load_checkpoint(path: Path) -> Checkpoint:
    """Raises CheckpointError for a file that is not one of these, or not whole."""
    tensors, said = read_safetensors(path)
    if said.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no checkpoint of a training by recipe ({FORMAT}): to begin with its weights, give "
                              "it as model.weights (--initial-checkpoint)")
    try:
        return Checkpoint(path, int(said["update"]), dict(said["experiment"]), list(said["classes"]), dict(said["plan"]),
                          said["best"], dict(said["state"]), tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not whole ({error}): take another checkpoint") from None


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], update: int, experiment: Mapping[str, Any],
                    classes: list[str], plan: Mapping[str, Any], best: float | None, packed: Mapping[str, Any]) -> None:
    """Write one, all or nothing. Raises CheckpointError."""
    write_safetensors(path, dict(tensors), {
        "format": FORMAT, "update": update, "experiment": dict(experiment), "model": experiment["model"],
        "classes": classes, "plan": dict(plan), "best": best, "state": dict(packed)})


def newest(folder: str | Path, warn: Warn | None = None) -> Path | None:
    """The checkpoint of a work folder that has most updates behind it; None where there is none.

    A file that cannot be read is passed over; with `warn` (the training's own, which has the folder to itself) it is set
    aside as name.damaged, and `warn` gets one line. Raises CheckpointError where that fails.
    """
    for path in sorted(Path(folder, FOLDER).glob(f"step-*{SUFFIX}"), reverse=True):
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            if warn:
                aside = set_aside(path, str(error))
                warn(f"the checkpoint {path} is damaged ({error}); it is now {aside.name}, and the one before is taken")
            continue
        return path
    return None


def check_goes_on(found: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming the first differences, unless a training of these settings goes on from it."""
    if told := differences(found.experiment, settings):
        raise CheckpointError(f"{found.path} is of a training of other settings ({told}): give the same ones, or begin anew "
                              "with its weights, model.weights (--initial-checkpoint)")


def load_weights_into(model: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Put whole weights into a model. Raises CheckpointError naming the first one that does not fit."""
    own = {n: t for n, t in model.state_dict().items() if not n.endswith(PART)}
    for name in [*own, *state]:
        if name not in own or name not in state or own[name].shape != state[name].shape:
            there = tuple(state[name].shape) if name in state else "missing"
            here = tuple(own[name].shape) if name in own else "not there"
            raise CheckpointError(f"{where}: {name!r} is {there}, in the model {here}: it is of another model")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


class Keeper:
    """The checkpoints of a work folder: `keep` of them, beside `latest` and `best`."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = Path(folder) / FOLDER, keep

    def clean(self) -> None:
        """Remove what a killed training left unfinished."""
        for part in self.folder.glob(f".*{SUFFIX}.*.tmp"):
            part.unlink(missing_ok=True)

    def mend(self, found: Checkpoint) -> None:
        """The names of what a training goes on from, where it was killed before it had them, or they were the damaged
        one's. A better one is saved at once, so where `best` is of another accuracy, it is this one's."""
        if found.path.parent.resolve() != self.folder.resolve():
            return
        _also_called(found.path, self.folder / f"{LATEST}{SUFFIX}")
        best = self.folder / f"{BEST}{SUFFIX}"
        try:
            known = load_checkpoint(best).best
        except CheckpointError:
            known = None
        if known != found.best:
            _also_called(found.path, best)

    def path(self, update: int) -> Path:
        return self.folder / f"step-{update:08d}{SUFFIX}"

    def name(self, update: int, best: bool) -> None:
        """The checkpoint of an update is the latest, and perhaps the best; of the older ones `keep` stay."""
        path = self.path(update)
        for alias in (LATEST, *([BEST] if best else [])):
            _also_called(path, self.folder / f"{alias}{SUFFIX}")
        for old in sorted(self.folder.glob(f"step-*{SUFFIX}"))[:-self.keep]:
            old.unlink(missing_ok=True)


def _also_called(path: Path, alias: Path) -> None:
    """Give a file another name; a copy where the file system has no links. Raises CheckpointError."""
    aside = alias.with_name(f".{alias.name}.{os.getpid()}.tmp")
    try:
        aside.unlink(missing_ok=True)
        try:
            os.link(path, aside)
        except OSError:
            shutil.copyfile(path, aside)
        os.replace(aside, alias)
    except OSError as error:
        raise CheckpointError(f"cannot write {alias}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
