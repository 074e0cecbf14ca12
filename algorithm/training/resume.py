"""The training checkpoint: the leaves, their velocities and the losses up to a step, and of which run they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algorithm.errors import CheckpointError
from algorithm.training.checkpoint import read_safetensors, set_aside, write_safetensors
from algorithm.training.step import Sgd


def save_state(path: Path, sgd: Sgd, losses: np.ndarray, lrs: np.ndarray, identity: dict[str, Any]) -> None:
    """Write the state after len(losses) steps, made with the rates `lrs`, all or nothing. Raises CheckpointError."""
    tensors = {f"leaf/{n}": t for n, t in zip(sgd.names, sgd.leaves, strict=True)}
    tensors |= {f"velocity/{n}": t for n, t in zip(sgd.names, sgd.velocity, strict=False)}
    tensors |= {"losses": torch.from_numpy(losses.copy()), "lrs": torch.from_numpy(lrs.copy())}
    write_safetensors(path, tensors, {"step": len(losses), "identity": identity})


def resume(path: Path, sgd: Sgd, losses: np.ndarray, lrs: np.ndarray, identity: dict[str, Any],
           warn: Callable[[str], None]) -> int:
    """Put a checkpoint's state into `sgd` and the beginning of `losses` (S,); returns how many steps it has behind it.

    0 where there is no file, or a damaged one, which is set aside. Raises CheckpointError for one of another run, or of
    more than S steps: every step behind it must be one that would be made again, with the same of the rates `lrs` (S,).
    """
    if not path.exists():
        return 0
    try:
        tensors, state = read_safetensors(path)
        theirs, step = state["identity"], state["step"]
        known, rates = tensors["losses"].numpy(), tensors["lrs"].numpy()
        if not isinstance(theirs, dict) or type(step) is not int or not known.shape == rates.shape == (step,):
            raise CheckpointError("its step and its losses do not agree")
    except (CheckpointError, KeyError) as error:
        return _damaged(path, error, warn)
    for key, value in identity.items():
        if theirs.get(key) != value:
            raise _of_another(path, f"its {key} differs")
    both = min(step, len(lrs))
    if (other := np.flatnonzero(rates[:both] != lrs[:both])).size:
        at = int(other[0])
        raise _of_another(path, f"its lr differs: step {at + 1} was made with {rates[at]:g}, now it would be with "
                                f"{lrs[at]:g}")
    if step > len(losses):
        raise CheckpointError(f"{path} is at step {step}, beyond the {len(losses)} asked for: raise train.epochs or "
                              "train.steps, or remove it to start anew")
    try:
        found = [(leaf, _state(tensors, f"{kind}/{name}", leaf)) for kind, leaves in
                 (("leaf", sgd.leaves), ("velocity", sgd.velocity)) for name, leaf in zip(sgd.names, leaves, strict=False)]
    except CheckpointError as error:
        return _damaged(path, error, warn)
    with torch.no_grad():
        for leaf, value in found:
            leaf.copy_(value)
    losses[:step] = known
    sgd.applied.sync()
    return step


def _of_another(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} belongs to another run ({why}): remove it to start anew, or use another --name")


def _state(tensors: dict[str, torch.Tensor], key: str, like: torch.Tensor) -> torch.Tensor:
    value = tensors.get(key)
    if value is None or value.shape != like.shape or value.dtype != like.dtype:
        found = "nothing" if value is None else f"{tuple(value.shape)} {value.dtype}"
        raise CheckpointError(f"expected {key} of {tuple(like.shape)} {like.dtype}, found {found}")
    return value


def _damaged(path: Path, error: Exception, warn: Callable[[str], None]) -> int:
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    aside = set_aside(path, reason)
    warn(f"the training checkpoint {path} is damaged ({reason}); it is now {aside.name}, and the training starts anew")
    return 0
