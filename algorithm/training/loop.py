"""Fine-tuning with the device's own updates: batch 1, SGD, eval mode, float32, images in a seeded order."""

from __future__ import annotations

import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from algorithm.data.dataset import Dataset
from algorithm.errors import ConfigError, NonFiniteLossError
from algorithm.models.vit import images_to_input, input_scale_shift
from algorithm.sparse.apply import AppliedPlan
from algorithm.sparse.plan import UpdatePlan
from algorithm.training.augment import Transform, shift_pixels, transform_of, transformed
from algorithm.training.config import TrainConfig
from algorithm.training.prefix import CACHE_BYTES, FrozenPrefix
from algorithm.training.resume import resume, save_state
from algorithm.training.schedule import learning_rates
from algorithm.training.step import Sgd, train_step
from algorithm.training.threads import torch_threads

OnStep = Callable[[int, float], None]
View = tuple[int, Transform]    # an image by its number, and what becomes of it


@dataclass
class TrainResult:
    """losses (steps,) float64, one a step, before its update; wall seconds; how many steps were resumed."""

    losses: np.ndarray
    seconds: float
    resumed_steps: int = 0


def image_order(count: int, epochs: int, seed: int, steps: int | None = None) -> np.ndarray:
    """Positions of the images, step by step: the data's own order first, then a seeded shuffle for each pass.

    A longer order begins with every shorter one. Raises ConfigError where `steps` is more than the passes hold.
    """
    if steps is not None and steps > epochs * count:
        raise ConfigError(f"train.steps={steps} is more than {epochs} passes over {count} images hold ({epochs * count}): "
                          f"set train.epochs={-(-steps // count)} (--epochs) or fewer steps")
    needed = epochs if steps is None else -(-steps // count)
    passes = [np.arange(count)] + [np.random.default_rng([seed, e]).permutation(count) for e in range(1, needed)]
    return np.concatenate(passes)[:steps]


def finetune(model: nn.Module, plan: UpdatePlan, data: Dataset, config: TrainConfig, *,
             checkpoint: str | Path | None = None, on_step: OnStep | None = None,
             on_resume: Callable[[np.ndarray], None] | None = None,
             warn: Callable[[str], None] | None = None) -> TrainResult:
    """Train the plan's parameters in place.

    checkpoint: a file to resume from when it exists, and to write every `checkpoint_every` steps and at the end. What
    is resumed gives the bits of an uninterrupted run; more epochs or steps than before go on from it. A damaged file is
    set aside (name.damaged), which `warn` is told, and the training starts anew; the file of another run (plan, data,
    initial weights, momentum, seed, or the learning rates of its steps differ) is refused.
    on_resume: called once before the first step with the losses (n,) of the steps that are not made again, if any.
    on_step: called with (0-based step, loss) after each step made; what it raises stops the training, saved up to this
    step. warn: gets one line; None prints it to stderr.
    Raises NonFiniteLossError, CheckpointError, ConfigError, PlanError.
    """
    order = image_order(len(data), config.epochs, config.seed, config.steps)
    lrs = learning_rates(config, len(data))
    losses = np.zeros(len(order))
    model.eval()
    device = next(model.parameters()).device
    scale, shift = input_scale_shift(model)

    def load(view: View) -> Tensor:
        return images_to_input(transformed(data.images[view[0]], view[1])[None], scale, shift).to(device)

    side = data.images.shape[1]
    views = [(int(i), transform_of(config, side, int(i), step // len(data))) for step, i in enumerate(order)]

    start_time = time.perf_counter()
    with torch_threads(config.threads), ExitStack() as stack:
        identity = {} if checkpoint is None else {
            "plan": plan.to_dict()["parameters"], "momentum": config.momentum, "seed": config.seed,
            "augmentation": [config.augment, shift_pixels(config, side), config.variants],
            "data": _fingerprint([data.images, data.labels, scale, shift]),
            "initial weights": _fingerprint([t.detach().cpu().numpy() for t in model.state_dict().values()])}
        applied = stack.enter_context(AppliedPlan(model, plan))
        sgd = Sgd(applied, config.momentum)
        first = 0
        if checkpoint is not None:
            first = resume(Path(checkpoint), sgd, losses, lrs, identity, warn or _to_stderr)
        if on_resume and first:
            on_resume(losses[:first].copy())
        prefix = FrozenPrefix(model, plan, load(views[0]))
        kept = _Cache(prefix, load, views[first:])
        for step in range(first, len(order)):
            label, lr = int(data.labels[order[step]]), float(lrs[step])
            losses[step] = train_step(prefix.above, kept(views[step]), label, sgd, step, lr)
            stop = _stop(on_step, step, losses[step])
            if stop or (step + 1) % config.checkpoint_every == 0 or step + 1 == len(order):
                _check_finite(sgd, step, losses[step], lr)
                if checkpoint is not None:
                    save_state(Path(checkpoint), sgd, losses[:step + 1], lrs[:step + 1], identity)
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


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Cache:
    """Outputs of the frozen prefix by view, kept until the last of `views` that needs them while they fit into
    CACHE_BYTES."""

    def __init__(self, prefix: FrozenPrefix, load: Callable[[View], Tensor], views: list[View]) -> None:
        self.prefix, self.load = prefix, load
        self.to_come = Counter(views) if prefix.active and prefix.block > 0 else Counter[View]()
        self.kept: dict[View, Tensor] = {}
        self.bytes = 0

    def __call__(self, view: View) -> Tensor:
        self.to_come[view] -= 1
        again = self.to_come[view] > 0
        if view in self.kept:
            return self.kept[view] if again else self._let_go(view)
        tokens = self.prefix.below(self.load(view))
        if again and self.bytes + tokens.nbytes <= CACHE_BYTES:
            self.kept[view] = tokens
            self.bytes += tokens.nbytes
        return tokens

    def _let_go(self, view: View) -> Tensor:
        tokens = self.kept.pop(view)
        self.bytes -= tokens.nbytes
        return tokens


def _check_finite(sgd: Sgd, step: int, loss: float, lr: float) -> None:
    if not all(bool(torch.isfinite(leaf).all()) for leaf in sgd.leaves):
        raise NonFiniteLossError(f"weights are not finite after step {step}: lower train.lr (it is {lr:g} here)",
                                 step, loss)


def _fingerprint(arrays: list[np.ndarray]) -> int:
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).tobytes(), value)
    return value
