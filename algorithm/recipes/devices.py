"""Where and in what precision a recipe trains: the device, autocast, the gradient scaler."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from algorithm.errors import ConfigError
from algorithm.recipes.config import RecipeConfig

TYPES = ("cuda", "mps", "cpu")


def find_device(wanted: str = "auto", local_rank: int = 0, world: int = 1) -> torch.device:
    """The device of this process: "auto" is cuda, mps or cpu, the first that is here. Of several processes on a machine
    each takes the GPU of its local rank. Raises ConfigError for what is not here."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        wanted = next(t for t in TYPES if present[t])
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f"recipe.device={wanted!r} is no device: use auto, {', '.join(TYPES)}, or cuda:1") from None
    if not present.get(device.type, False):
        raise ConfigError(f"recipe.device={wanted!r} is not here (there is {', '.join(t for t in TYPES if present[t])}): "
                          "use auto")
    if device.type == "mps" and world > 1:
        raise ConfigError("several processes cannot share one mps device: start one, or set recipe.device=cpu")
    if device.type != "cuda":
        return device
    if world > 1 and device.index is not None:
        raise ConfigError(f"recipe.device={wanted!r} would put {world} processes on one GPU: set recipe.device=cuda")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ConfigError(f"there are {torch.cuda.device_count()} GPUs here, GPU {index} is asked for: start fewer "
                          "processes, or choose another")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


class Precision:
    """Autocast and gradient scaling: `with precision.autocast():`, and `precision.scaler`, both idle but on CUDA."""

    def __init__(self, recipe: RecipeConfig, device: torch.device) -> None:
        self.on = recipe.amp and device.type == "cuda"
        self.dtype = getattr(torch, recipe.amp_dtype)
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.on and self.dtype == torch.float16)

    def autocast(self) -> Any:
        """A context for a forward pass and its loss."""
        return torch.autocast(self.device.type, self.dtype) if self.on else nullcontext()

    def describe(self) -> str:
        return str(self.dtype).removeprefix("torch.") if self.on else "float32"
