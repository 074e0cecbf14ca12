"""What the compiler is given: a PyTorch module, its input, and the update plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from compilation.errors import CaptureError


@dataclass
class InputSpec:
    """The model's input. An image arrives on the device as uint8 (H, W, C); the model sees
    u8 * scale[c] + shift[c] as float (1, C, H, W). Any other input is float32 of the given shape."""

    shape: tuple[int, ...]                      # without batch: (C, H, W) for images
    scale: np.ndarray | None = None             # (C,)
    shift: np.ndarray | None = None             # (C,)

    @property
    def is_image(self) -> bool:
        return self.scale is not None

    @staticmethod
    def image(shape: tuple[int, int, int], mean: Any, std: Any) -> InputSpec:
        mean, std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        return InputSpec(shape, (1.0 / (255.0 * std)).astype(np.float32), (-mean / std).astype(np.float32))


@dataclass
class Exported:
    """A captured model: the exported program and its parameters by their PyTorch names."""

    program: Any                                 # torch.export.ExportedProgram
    parameters: dict[str, np.ndarray]
    spec: InputSpec
    argument_names: dict[str, str] = field(default_factory=dict)  # graph argument -> parameter name
    module_paths: dict[str, str] = field(default_factory=dict)  # graph node name -> module path


def capture(model: nn.Module, spec: InputSpec) -> Exported:
    """Export `model` (evaluation mode, batch 1) with torch.export.

    Raises CaptureError when the model cannot be exported as one graph.
    """
    if model.training:
        raise CaptureError("the model is in training mode: call model.eval() first (the device has no dropout)")
    example = torch.zeros(1, *spec.shape)
    try:
        with torch.no_grad():
            exported = torch.export.export(model, (example,))
    except Exception as error:  # torch.export raises many kinds
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CaptureError(f"torch.export cannot capture {type(model).__name__} as one graph: {first}") from error
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers,
             **signature.inputs_to_lifted_tensor_constants}
    state = dict(exported.state_dict)
    arguments = {n.name: names[n.name] for n in exported.graph.nodes if n.op == "placeholder" and n.name in names}
    parameters = {}
    for name in arguments.values():
        value = state[name] if name in state else exported.constants[name]
        parameters[name] = value.detach().cpu().numpy()
        if not np.isfinite(parameters[name]).all():
            raise CaptureError(f"parameter {name} holds NaN or infinite values: load sound weights before compiling")
    paths = {}
    for node in exported.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if stack:
            paths[node.name] = list(stack.values())[-1][0].removeprefix("L['self'].")
    return Exported(exported, parameters, spec, arguments, paths)
