"""Fine-tuning with the device's own updates: batch 1, SGD, eval mode, float32, images in a seeded order."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algorithm.data.dataset import Dataset
from algorithm.errors import CheckpointError, NonFiniteLossError
from algorithm.models.vit import images_to_input, input_scale_shift
from algorithm.sparse.apply import AppliedPlan
from algorithm.sparse.plan import UpdatePlan
from algorithm.training.checkpoint import load_state_into, read_safetensors, write_safetensors
from algorithm.training.config import TrainConfig
from algorithm.training.prefix import CACHE_BYTES, FrozenPrefix
from algorithm.training.step import Sgd, train_step

OnStep = Callable[[int, float], None]


@dataclass
class TrainResult:
    """losses (steps,) float64, one a step, before its update; wall seconds; how many steps were resumed."""

    losses: np.ndarray
    seconds: float
    resumed_steps: int = 0


def image_order(count: int, epochs: int, seed: int, steps: int | None = None) -> np.ndarray:
    """Positions of the images, step by step: the data's own order first, then a seeded shuffle for each pass."""
    passes = [np.arange(count)] + [np.random.default_rng([seed, e]).permutation(count) for e in range(1, epochs)]
    return np.concatenate(passes)[:steps]


def finetune(model: nn.Module, plan: UpdatePlan, data: Dataset, config: TrainConfig, *,
             checkpoint: str | Path | None = None, on_step: OnStep | None = None) -> TrainResult:
    """Train the plan's parameters in place.

    checkpoint: a file to resume from when it exists, and to write every `checkpoint_every` steps and at the end.
    on_step: called with (0-based step, loss); what it raises stops the training, saved up to this step.
    Raises NonFiniteLossError, CheckpointError, PlanError.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    order = image_order(len(data), config.epochs, config.seed, config.steps)
    losses = np.zeros(len(order))
    model.eval()
    device = next(model.parameters()).device
    scale, shift = input_scale_shift(model)

    def load(i: int) -> Tensor:
        return images_to_input(data.images[i:i + 1], scale, shift).to(device)

    start_time = time.perf_counter()
    with AppliedPlan(model, plan) as applied:
        sgd = Sgd(applied, config.lr, config.momentum)
        first = 0
        identity = {"plan": plan.to_dict()["parameters"], "lr": config.lr, "momentum": config.momentum,
                    "seed": config.seed, "data": _fingerprint(data)}
        if checkpoint is not None and Path(checkpoint).is_file():
            first = _resume(Path(checkpoint), sgd, losses, identity)
        prefix = FrozenPrefix(model, plan, load(0))
        kept = _Cache(prefix, load, repeated=len(order) > len(data))
        for step in range(first, len(order)):
            i = int(order[step])
            losses[step] = train_step(prefix.above, kept(i), int(data.labels[i]), sgd, step)
            stop = _stop(on_step, step, losses[step])
            if stop or (step + 1) % config.checkpoint_every == 0 or step + 1 == len(order):
                _check_finite(sgd, step, losses[step])
                if checkpoint is not None:
                    _save(Path(checkpoint), sgd, losses[:step + 1], identity)
            if stop:
                raise stop
    return TrainResult(losses, time.perf_counter() - start_time, first)


def _stop(on_step: OnStep | None, step: int, loss: float) -> BaseException | None:
    """What on_step raised: the training stops, but not before what it has done is saved."""
    try:
        if on_step:
            on_step(step, loss)
    except BaseException as error:
        return error
    return None


class _Cache:
    """Outputs of the frozen prefix by image, kept while they fit into CACHE_BYTES."""

    def __init__(self, prefix: FrozenPrefix, load: Callable[[int], Tensor], repeated: bool) -> None:
        self.prefix, self.load = prefix, load
        self.keep = repeated and prefix.active and prefix.block > 0
        self.kept: dict[int, Tensor] = {}
        self.bytes = 0

    def __call__(self, i: int) -> Tensor:
        if i in self.kept:
            return self.kept[i]
        tokens = self.prefix.below(self.load(i))
        size = tokens.numel() * tokens.element_size()
        if self.keep and self.bytes + size <= CACHE_BYTES:
            self.kept[i] = tokens
            self.bytes += size
        return tokens


def _check_finite(sgd: Sgd, step: int, loss: float) -> None:
    if not all(bool(torch.isfinite(leaf).all()) for leaf in sgd.leaves):
        raise NonFiniteLossError(f"weights are not finite after step {step}: lower train.lr (it is {sgd.lr:g})",
                                 step, loss)


def _fingerprint(data: Dataset) -> int:
    return zlib.crc32(data.labels.tobytes(), zlib.crc32(data.images.tobytes()))


def _save(path: Path, sgd: Sgd, losses: np.ndarray, identity: dict[str, Any]) -> None:
    tensors = {f"leaf/{n}": t for n, t in zip(sgd.names, sgd.leaves, strict=True)}
    tensors |= {f"velocity/{n}": t for n, t in zip(sgd.names, sgd.velocity, strict=False)}
    tensors["losses"] = torch.from_numpy(losses.copy())
    write_safetensors(path, tensors, {"step": len(losses), "identity": identity})


def _resume(path: Path, sgd: Sgd, losses: np.ndarray, identity: dict[str, Any]) -> int:
    tensors, state = read_safetensors(path)
    theirs = state.get("identity", {})
    for key, value in identity.items():
        if theirs.get(key) != value:
            raise CheckpointError(f"{path} belongs to another run (its {key} differs): remove it, or use another "
                                  "output folder")
    step = int(state["step"])
    if step > len(losses):
        raise CheckpointError(f"{path} is at step {step}, beyond the {len(losses)} asked for")
    load_state_into(dict(zip(sgd.names, sgd.leaves, strict=True)), tensors, "leaf", path)
    if sgd.velocity:
        load_state_into(dict(zip(sgd.names, sgd.velocity, strict=True)), tensors, "velocity", path)
    losses[:step] = tensors["losses"].numpy()
    sgd.applied.sync()
    return step
