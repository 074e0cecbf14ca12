"""Checkpoints as safetensors with their state as JSON in the header, written atomically."""

from __future__ import annotations

import itertools
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from algorithm.errors import CheckpointError
from algorithm.models.additions import without_additions
from algorithm.schema import one_line


def write_safetensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write all or nothing: to a neighbour first, then renamed. Metadata values are stored as JSON."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary,
                  {k: json.dumps(v) for k, v in metadata.items()})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # a full disk comes as either
        raise CheckpointError(f"cannot write {path}: {getattr(error, 'strerror', None) or one_line(error)}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `write_safetensors`. Raises CheckpointError."""
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
            return {n: file.get_tensor(n) for n in list(file.keys())}, metadata
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {one_line(error)}") from None


def save_model(model: nn.Module, path: str | Path, **metadata: Any) -> None:
    """The whole state dict, loadable by `model.weights=<path>`, with the configuration it was made from.

    timm loads it, too, with strict=False where there are additions; `export_timm` writes a file without them.
    """
    config = getattr(model, "vit_config", None)
    made_from = {"model": config.model_dump(mode="json")} if config else {}
    write_safetensors(path, dict(model.state_dict()), {**made_from, **metadata})


def export_timm(model: nn.Module, path: str | Path) -> None:
    """Write a file that plain timm loads strictly, and that computes the same there: the state without its additions.

    Its metadata `timm` is the JSON of the arguments: timm.create_model(**arguments).load_state_dict(load_file(path)).
    Raises CheckpointError where an addition (Gram, LoRA, output gate) does something, which would be lost.
    """
    state, acting = without_additions(model.state_dict())
    if acting:
        raise CheckpointError(f"timm has no place for {acting[0]}, which is trained (and {len(acting) - 1} more): the model "
                              "would be another one without it; keep the checkpoint of save_model")
    write_safetensors(path, state, {"timm": getattr(model, "timm_arguments", {})})


def set_aside(path: Path, reason: str) -> Path:
    """Rename a damaged file out of the way, keeping it: name.damaged, name.damaged-2, ... Raises CheckpointError."""
    for n in itertools.count(1):
        aside = path.with_name(f"{path.name}.damaged" + (f"-{n}" if n > 1 else ""))
        if not aside.exists():
            break
    try:
        path.rename(aside)
    except OSError as error:
        raise CheckpointError(f"{path} is damaged ({reason}) and cannot be moved ({error.strerror or error}): "
                              "remove it") from None
    return aside

