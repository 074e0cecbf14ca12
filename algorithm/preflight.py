"""What can be refused before any work is, without PyTorch: plan files, weights files, data folders, logging."""

from __future__ import annotations

import importlib.util
import netrc
import os
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from algorithm.config import RunConfig
from algorithm.data.config import CIFAR, OF_IMAGE_FILES, DataConfig
from algorithm.data.imagenet import data_files
from algorithm.errors import ConfigError, DataError, PlanError
from algorithm.models.sources import check_source, timm_name
from algorithm.monitor.config import LogConfig
from algorithm.sparse.config import PlanChoice
from algorithm.sparse.order import check_merit
from algorithm.sparse.plan import VERSION, UpdatePlan


def preflight(config: RunConfig) -> None:
    """Raise an AlgorithmError, one line, for whatever of a configuration cannot work here.

    Reads the plan file, the header of a weights file and the names of the images; loads no PyTorch. What only the built
    model can tell (names and sizes of parameters) is refused when it is built.
    """
    check_plan(config.plan)
    check_source(config.model.weights, timm_name(config.model.name))
    counts = check_data(config.data, config.model.num_classes)
    images = config.data.images_per_class
    if counts is not None or images is not None:
        classes = len(counts) if counts is not None else config.data.known_classes or 0
        total = sum(counts) if images is None and counts is not None else classes * (images or 0)
        check_steps(config.train.steps, config.train.epochs, total)
    if config.train.trace is not None and not Path(config.train.trace).is_file():
        raise ConfigError(f"no recorded run at {config.train.trace}: give a trace.safetensors with --trace (train.trace)")
    check_monitor(config.monitor)


def check_plan(choice: PlanChoice) -> None:
    """The plan file is there, well-formed, and trains something; rules are ones that a model can have.

    Raises ConfigError, PlanError.
    """
    if choice.choose == "auto":
        check_merit(choice.merit, choice.always)
    elif choice.choose == "rule":
        UpdatePlan.from_dict({"version": VERSION, "parameters": choice.rule.parameters})
    elif choice.file is None:
        raise ConfigError("plan.choose=file needs plan.file (--plan FILE)")
    elif not UpdatePlan.load(choice.file).parameters:
        raise PlanError(f"{choice.file}: the plan trains nothing: name at least one parameter")


def check_data(config: DataConfig, num_classes: int) -> list[int] | None:
    """The data are there as far as names tell, and every class can be predicted and held out. Raises DataError.

    Returns the number of training images by class, None where only loading tells.
    """
    classes, each = config.known_classes, config.known_each
    counts = [each] * classes if classes is not None and each is not None else None
    names = [str(c) for c in range(classes or 0)]
    if config.name in OF_IMAGE_FILES:
        train, _, names = data_files(config, warn=_later)
        by_label = Counter(label for _, label in train)
        classes, counts = len(names), [by_label[i] for i in range(len(names))]
    elif config.name in CIFAR:
        if config.data_root is None:
            raise DataError(f"{config.name} needs data.data_root: the folder that holds torchvision's copy of it")
        if not config.download and not (Path(config.data_root) / CIFAR[config.name]).is_dir():
            raise DataError(f"{config.name} is not in {config.data_root} (no such folder: {CIFAR[config.name]}); or allow "
                            "it with data.download=true")
    short = next((i for i, n in enumerate(counts or []) if n < (config.images_per_class or 0)), None)
    if counts is not None and short is not None:
        raise DataError(f"class {names[short]!r} has {counts[short]} images to train on (held-out ones not counted), "
                        f"{config.images_per_class} asked for; lower data.images_per_class (--images_per_class)")
    if classes is not None and classes > num_classes:
        raise DataError(f"the data have {classes} classes (labels 0 to {classes - 1}), the model predicts {num_classes}: "
                        f"set model.num_classes (--num_classes {classes})")
    if classes is not None and config.test_images is not None and config.test_images < classes:
        raise DataError(f"data.test_images={config.test_images} cannot show each of the {classes} classes: ask for "
                        f"{classes} or more")
    return counts


def _later(_: str) -> None:
    """A warning that loading the data will give."""


def check_steps(steps: int | None, epochs: int, images: int) -> None:
    """Raise ConfigError where `steps` is more than the passes over the images hold (images 0: not known)."""
    if images and steps is not None and steps > epochs * images:
        raise ConfigError(f"train.steps={steps} is more than {epochs} passes over {images} images hold ({epochs * images}): "
                          f"set train.epochs={-(-steps // images)} (--epochs) or fewer steps")


def check_monitor(config: LogConfig) -> None:
    """Weights & Biases can be used as asked. Raises ConfigError."""
    if config.wandb == "off":
        return
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError("monitor.wandb needs the wandb package: pip install wandb, or monitor.wandb=off")
    if config.wandb == "online" and not _has_wandb_key():
        raise ConfigError("monitor.wandb=online has no key: set WANDB_API_KEY, run `wandb login`, or use "
                          "monitor.wandb=offline")


def _has_wandb_key() -> bool:
    """A key in the environment, or in the netrc file that `wandb login` writes."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for place in places:
        try:
            entry = netrc.netrc(os.path.expanduser(place)).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return True
    return False
