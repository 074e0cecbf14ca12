"""A model to look at: from a checkpoint of `train` or of the main job, which say what they are, or from timm's own files
and names, with --model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algorithm.commands.arguments import EVALUATION, Parser, add_recipe_flags
from algorithm.commands.resolving import complete, experiment_of, tree_of
from algorithm.continuing import flat
from algorithm.errors import CheckpointError, ConfigError, WeightsError
from algorithm.experiment import Experiment
from algorithm.layers import Tree, over
from algorithm.schema import one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

EMA = "ema/"            # before the names of the moving average's tensors


@dataclass(frozen=True)
class Asked:
    """What a command line names. path None: a model by its name. said: what the file says of itself, empty of foreign ones.

    classes: their names, empty where nothing tells.
    """

    path: Path | None
    experiment: Experiment
    said: dict[str, Any]
    classes: list[str]
    ema: bool


def add_opening_flags(parser: Parser, needs_file: bool = True) -> None:
    """`--checkpoint` and what evaluation reads of the table."""
    parser.add_argument("--checkpoint", metavar="FILE", required=needs_file,
                        help="of `train` or of the main job, or a work folder (its newest); or a file of timm, with --model")
    parser.add_argument("--ema", action="store_true", help="the moving average that the checkpoint keeps, not the weights")
    add_recipe_flags(parser, only=EVALUATION)


def read_request(options: argparse.Namespace) -> Asked:
    """The command line over what the checkpoint says. Loads no PyTorch unless the model's own size must be asked for.

    Raises ConfigError, CheckpointError, DataError.
    """
    path = None if options.checkpoint is None else checkpoint_file(Path(options.checkpoint))
    said = {} if path is None else header_of(path)
    given = tree_of(options.config, vars(options), options.overrides)
    if options.batch_size is not None:      # of what is done here, whatever batch the training evaluated in
        given["recipe"].setdefault("batch_eval", options.batch_size)
    base = _tree_of_header(said)
    if not base:
        if "name" not in given.get("model", {}):
            raise ConfigError(f"{path} does not say what model it is: give --model NAME" if path else
                              "nothing says what to look at: give --checkpoint FILE, or --model NAME")
        if path is not None:
            given["model"].setdefault("num_classes", _outputs(path))
        return _asked(path, complete(given), said, options.ema)
    model, wanted = flat(base["model"]), flat(given.pop("model", {}))
    other = next((k for k, v in wanted.items() if str(v) != str(model.get(k))), None)
    if other is not None:
        raise ConfigError(f"{path} says what model it is (model.{other}={model.get(other)}), model.{other}={wanted[other]} "
                          "would be another: leave it out")
    return _asked(path, experiment_of(over(base, given)), said, options.ema)


def _asked(path: Path | None, experiment: Experiment, said: dict[str, Any], ema: bool) -> Asked:
    if ema and not any(name.startswith(EMA) for name in said.get("tensors", ())):
        raise CheckpointError(f"{path or experiment.model.name} keeps no moving average: leave --ema out")
    return Asked(path, experiment, said, said.get("classes") or [], ema)


def checkpoint_file(path: Path) -> Path:
    """The file, or the newest checkpoint of a work folder. Raises CheckpointError."""
    if path.is_dir():
        from algorithm.recipes.checkpoint import newest
        found = newest(path)
        if found is None:
            raise CheckpointError(f"the folder {path} holds no checkpoint: give the file")
        return Path(found)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: give a file, or a work folder of `train`")
    return path


def header_of(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file, and "tensors": name -> shape; empty for other files. Raises CheckpointError."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(str(path), framework="np") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - no mapping
            texts = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {one_line(error)}") from None
    said: dict[str, Any] = {}
    for key, text in texts.items():
        try:
            said[key] = json.loads(text)
        except ValueError:          # timm's own, {"format": "pt"}
            continue
    return {**said, "tensors": shapes}


def _tree_of_header(said: dict[str, Any]) -> Tree:
    """The experiment that a file of ours was made by; empty for a foreign one."""
    if isinstance(said.get("experiment"), dict):
        tree = {k: v for k, v in said["experiment"].items() if k in ("model", "data", "recipe")}
        return {**tree, "model": {**tree.get("model", {}), "weights": "none"}}
    if isinstance(said.get("model"), dict):             # of the main job
        return {"model": {**said["model"], "weights": "none"}}
    return {}


def _outputs(path: Path) -> int:
    """How many classes the head of a foreign file predicts. Raises CheckpointError, WeightsError."""
    shapes = header_of(path).get("tensors")
    if shapes is None:
        from algorithm.models.weights import file_state_dict
        shapes = {name: tuple(value.shape) for name, value in file_state_dict(path).items()}
    head = next((shapes[n] for n in ("head.weight", "head.fc.weight") if n in shapes), None)
    if head is None:
        raise WeightsError(f"{path} has no head (head.weight), so it predicts no classes: fine-tune it first, train "
                           f"--initial-checkpoint {path}")
    return int(head[0])


def open_model(asked: Asked) -> nn.Module:
    """The model in eval mode on its device. Raises AlgorithmError: a file of another model, not readable, not finite."""
    import torch

    from algorithm.models import build_model
    from algorithm.recipes.devices import find_device
    if asked.experiment.recipe.threads:
        torch.set_num_threads(asked.experiment.recipe.threads)
    device = find_device(asked.experiment.recipe.device)
    config = asked.experiment.model
    if asked.path is not None and "experiment" not in asked.said:
        model = build_model(config.model_copy(update={"weights": str(asked.path)}))
        if not getattr(model, "head_loaded", True):
            raise WeightsError(f"{asked.path}: its head predicts another number of classes than model.num_classes="
                               f"{config.num_classes}: leave --num-classes out")
    else:
        model = build_model(config)
        if asked.path is not None:
            _load(model, asked.path, EMA if asked.ema else "")
    return model.to(device).eval()


def _load(model: nn.Module, path: Path, prefix: str) -> None:
    """The weights of a training's checkpoint; prefix: of those tensors' names (plain names hold no slash)."""
    import torch
    from safetensors import SafetensorError, safe_open
    state: dict[str, Tensor] = {}
    try:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                if name.startswith(prefix) and "/" not in name[len(prefix):]:
                    state[name[len(prefix):]] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint: {one_line(error)}") from None
    own = model.state_dict()
    for name, value in own.items():
        if name not in state:
            raise CheckpointError(f"{path}: {name!r} is missing; the file was cut or edited: use an intact one")
        if state[name].shape != value.shape:
            raise CheckpointError(f"{path}: {name!r} is {tuple(state[name].shape)}, its own experiment makes "
                                  f"{tuple(value.shape)}; the file was edited: use an intact one")
        if state[name].is_floating_point() and not bool(torch.isfinite(state[name]).all()):
            raise CheckpointError(f"{path}: {name!r} holds values that are not finite: the training diverged, take an "
                                  "earlier checkpoint")
    model.load_state_dict({name: state[name] for name in own})


def eval_transform_of(asked: Asked, model: Any) -> Any:
    """PIL image -> tensor (3, H, W), as the training evaluated."""
    from algorithm.recipes.evaluate import held_out_transform
    return held_out_transform(model, asked.experiment.model.img_size, asked.experiment.recipe.augment.crop_pct)


def class_names(asked: Asked, known: Sequence[str], outputs: int) -> list[str]:
    """A name for each output: the checkpoint's, those of the data for the first outputs, then numbers."""
    names = asked.classes or list(known)
    return [names[i] if i < len(names) else str(i) for i in range(outputs)]
