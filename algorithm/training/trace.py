"""Record a training run as a trace that C can replay: float64, float32, and float32 under random rounding, all from the
same initial weights.

The float64 run is the truth. The randomly rounded runs (`rounding.py`) are the witnesses of what float32 leaves open:
the verdict (`runtime/verdict.py`, `docs/verdict.md`) measures the C run by their distance from float64, not by the
distance of one float32 run, which is a matter of luck.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algorithm.distance import distance
from algorithm.errors import CheckpointError, DataError, PlanError
from algorithm.models.vit import images_to_input, input_scale_shift
from algorithm.sparse.apply import AppliedPlan
from algorithm.sparse.plan import Slice, UpdatePlan
from algorithm.training.checkpoint import read_safetensors, write_safetensors
from algorithm.training.rounding import RandomRounding
from algorithm.training.step import Sgd, train_step

FORMAT = "vit-trace-3"
WITNESSES = 8
ARRAYS = ("images", "labels", "lrs", "losses32", "losses64", "witness_losses")
GROUPS = ("init", "final32", "final64", "witness_distances")
OnStep = Callable[[int, int], None]     # steps done, of how many, over all runs


@dataclass
class Trace:
    """A recorded run of S steps, with K witnesses.

    images (S, H, W, C) uint8, labels (S,) int64, lrs (S,) float32 the learning rate of each step, losses32 and losses64
    (S,) and witness_losses (K, S) float64; by parameter name the whole tensors init and final32 (float32), final64
    (float64), and witness_distances (K, 3) float64: how far each witness ended from final64 in the trained part
    (`algorithm.distance.Distance`). metadata: format, model, plan, momentum, scale, shift (the input is uint8 * scale +
    shift), steps, device, torch.
    """

    images: np.ndarray
    labels: np.ndarray
    lrs: np.ndarray
    losses32: np.ndarray
    losses64: np.ndarray
    witness_losses: np.ndarray
    init: dict[str, np.ndarray]
    final32: dict[str, np.ndarray]
    final64: dict[str, np.ndarray]
    witness_distances: dict[str, np.ndarray]
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> UpdatePlan:
        """The plan that was trained."""
        return UpdatePlan.from_dict(self.metadata["plan"])

    def save(self, path: str | Path) -> None:
        """Safetensors: the arrays by their names, the groups as `<group>/<parameter>`. Raises CheckpointError."""
        arrays: dict[str, np.ndarray] = {name: getattr(self, name) for name in ARRAYS}
        for group in GROUPS:
            arrays |= {f"{group}/{n}": a for n, a in getattr(self, group).items()}
        write_safetensors(path, {k: torch.from_numpy(np.array(a, copy=True)) for k, a in arrays.items()}, self.metadata)

    @staticmethod
    def load(path: str | Path) -> Trace:
        """Read what `save` wrote. Raises CheckpointError: not readable, incomplete, or of another format."""
        tensors, metadata = read_safetensors(path)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path} is no trace of format {FORMAT} (found {metadata.get('format', 'none')!r}): "
                                  "record it again with this version")
        groups: dict[str, dict[str, np.ndarray]] = {group: {} for group in GROUPS}
        for key, tensor in tensors.items():
            group, slash, name = key.partition("/")
            if slash and group in groups:
                groups[group][name] = tensor.numpy()
        missing = [name for name in ARRAYS if name not in tensors]
        missing += [f"{group}/{name}" for group in GROUPS for name in set(groups["init"]) - set(groups[group])]
        steps = len(tensors["losses64"]) if not missing else 0
        if missing or any(len(tensors[n]) != steps for n in ("images", "labels", "lrs", "losses32")) \
                or tensors["witness_losses"].shape[1:] != (steps,):
            raise CheckpointError(f"{path} is damaged ({missing[0] + ' is missing' if missing else 'lengths differ'}): "
                                  "record the trace again")
        fields: dict[str, Any] = {**{name: tensors[name].numpy() for name in ARRAYS}, **groups}
        return Trace(**fields, metadata=metadata)


def run_steps(model: nn.Module, plan: UpdatePlan, images: np.ndarray, labels: np.ndarray, lr: float | np.ndarray,
              momentum: float, dtype: torch.dtype, device: str | torch.device = "cpu", rounding: int | None = None,
              on_step: Callable[[int], None] | None = None) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Train a copy of the model in `dtype`; the model stays as it is.

    lr: for all steps, or one a step (S,), rounded to float32. rounding: None for torch's own arithmetic, or the seed of a
    random rounding of float32. on_step: called with the 0-based step. Returns the losses (S,) float64, each before its
    update, and the trained parameters, whole, by name.
    """
    scale, shift = input_scale_shift(model)
    own = copy.deepcopy(model).to(device=device, dtype=dtype).eval()
    losses = np.zeros(len(images))
    with AppliedPlan(own, plan) as applied, nullcontext() if rounding is None else RandomRounding(rounding):
        sgd = Sgd(applied, momentum)
        for step, (image, label, rate) in enumerate(zip(images, labels, rates(lr, len(images)), strict=True)):
            x = images_to_input(image[None], scale, shift, dtype).to(device)
            losses[step] = train_step(own, x, int(label), sgd, step, float(rate))
            if on_step:
                on_step(step)
    named = dict(own.named_parameters())
    return losses, {n: named[n].detach().cpu() for n in plan.parameters}


def record_trace(model: nn.Module, plan: UpdatePlan, images: np.ndarray, labels: np.ndarray, lr: float | np.ndarray,
                 momentum: float = 0.0, path: str | Path | None = None,
                 device: str | torch.device | None = None, on_step: OnStep | None = None) -> Trace:
    """Run len(images) steps from the model's present weights in float64, in float32 and as WITNESSES; save to `path`.

    images (S, H, W, C) uint8, labels (S,). lr: one for all steps, or one a step (S,); every run, and the C code, takes it
    rounded to float32, the type of the device's argument. device None: cuda where present, else the CPU. The model is not
    changed.
    Raises NonFiniteLossError, DataError, PlanError, CheckpointError.
    """
    if len(images) == 0 or len(images) != len(labels):
        raise DataError(f"a trace needs as many images as labels, found {len(images)} and {len(labels)}")
    lrs = rates(lr, len(images))
    if not plan.parameters:
        raise PlanError("the plan trains nothing: there is no training to record; choose what to train")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    named = dict(model.named_parameters())
    init = {n: named[n].detach().cpu().numpy().copy() for n in plan.parameters}
    runs = 0

    def train(dtype: torch.dtype, rounding: int | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        nonlocal runs
        done, runs = runs * len(images), runs + 1
        report = None if on_step is None else lambda step: on_step(done + step + 1, (2 + WITNESSES) * len(images))
        with _full_float32(device):
            losses, final = run_steps(model, plan, images, labels, lrs, momentum, dtype, device, rounding, report)
        return losses, {n: t.numpy() for n, t in final.items()}

    losses64, final64 = train(torch.float64)
    losses32, final32 = train(torch.float32)
    witness_losses = np.zeros((WITNESSES, len(images)))
    distances: dict[str, np.ndarray] = {n: np.zeros((WITNESSES, 3)) for n in plan.parameters}
    for seed in range(WITNESSES):
        witness_losses[seed], final = train(torch.float32, seed)
        for name, choice in plan.parameters.items():
            exact = trained_part(final64[name], choice)
            moved = exact - trained_part(init[name], choice)
            distances[name][seed] = astuple(distance(trained_part(final[name], choice) - exact, moved))
    scale, shift = input_scale_shift(model)
    config = getattr(model, "vit_config", None)
    metadata = {"format": FORMAT, "model": config.model_dump() if config else {}, "plan": plan.to_dict(),
                "momentum": momentum, "scale": [float(v) for v in scale], "shift": [float(v) for v in shift],
                "steps": len(images), "device": str(device), "torch": torch.__version__}
    trace = Trace(np.asarray(images, np.uint8), np.asarray(labels, np.int64), lrs, losses32, losses64, witness_losses, init,
                  final32, final64, distances, metadata)
    if path is not None:
        trace.save(path)
    return trace


def rates(lr: float | np.ndarray, steps: int) -> np.ndarray:
    """One learning rate, or one a step, as (steps,) float32. Raises DataError."""
    found = np.asarray(lr, np.float32)
    if found.shape not in ((), (steps,)):
        raise DataError(f"a trace needs one learning rate, or one a step ({steps}), found an array {found.shape}")
    return np.full(steps, found) if found.ndim == 0 else found


def load_trace_of(path: str | Path, model: nn.Module, plan: UpdatePlan) -> Trace:
    """A trace that was recorded from this model's weights under this plan, wherever it was recorded. Raises CheckpointError,
    saying what differs."""
    trace = Trace.load(path)
    theirs, ours = trace.plan.parameters, plan.parameters
    odd = next((n for n in [*ours, *theirs] if ours.get(n) != theirs.get(n)), None)
    if odd is not None:
        raise CheckpointError(f"{path} was recorded under another update plan ({odd!r} is trained otherwise): give its own, "
                              "the plan.yaml beside it, with --plan")
    named = dict(model.named_parameters())
    for name, value in trace.init.items():
        if not np.array_equal(named[name].detach().cpu().numpy(), value):
            raise CheckpointError(f"{path} was recorded from other weights ({name!r} differs): give the checkpoint that it "
                                  "was recorded from with --weights")
    return trace


def trained_part(whole: np.ndarray, choice: str | Slice) -> np.ndarray:
    """Of a parameter, what the plan trains."""
    return np.take(whole, choice.index, 1 if choice.axis == "cols" else 0) if isinstance(choice, Slice) else whole


@contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """On a GPU, matrix products and convolutions in float32, not in TF32."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
