"""Checkpoints as safetensors with their state as JSON in the header, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from algorithm.errors import CheckpointError


def write_safetensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write all or nothing: to a neighbour first, then renamed. Metadata values are stored as JSON."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary,
                  {k: json.dumps(v) for k, v in metadata.items()})
        os.replace(temporary, path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `write_safetensors`. Raises CheckpointError."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
            return {n: file.get_tensor(n) for n in list(file.keys())}, metadata
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None


def save_model(model: nn.Module, path: str | Path, **metadata: Any) -> None:
    """The whole state dict, loadable by timm and by `model.weights=<path>`."""
    write_safetensors(path, dict(model.state_dict()), metadata)


def load_state_into(leaves: dict[str, Tensor], tensors: dict[str, Tensor], prefix: str, path: str | Path) -> None:
    """Copy `prefix/<name>` into each leaf. Raises CheckpointError on a missing or differently shaped tensor."""
    for name, leaf in leaves.items():
        value = tensors.get(f"{prefix}/{name}")
        if value is None or value.shape != leaf.shape:
            found = "nothing" if value is None else str(tuple(value.shape))
            raise CheckpointError(f"{path}: expected {prefix}/{name} of shape {tuple(leaf.shape)}, found {found}")
        with torch.no_grad():
            leaf.copy_(value)
