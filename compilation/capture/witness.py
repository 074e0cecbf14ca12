"""The witness of the capture: the module itself, run by PyTorch, against the captured graph.

torch.export leaves out what is not arithmetic: a custom backward, a hook on a gradient, `inference_mode`. So every
captured graph is run once beside the module, on random numbers, and must give the same values and the same gradient
of every parameter. The module's own gradient must moreover be in proportion to the gradient that arrives from above: a
hook or a custom backward that clips it, rounds it or drops small ones is not what the graph does, whatever it gives once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from compilation.errors import CaptureError

TOLERANCE = 1e-3        # of the largest element: float32 noise is 1e-6 to 1e-5, a gradient that is not there is 1
SCALES = 1e4, 1e-4      # of the gradient that arrives; of the graph's, which is linear in it, once
FLOOR = 1e-5            # of the largest element of all gradients: a gradient that is exactly zero is noise of that size


def check_capture(model: nn.Module, exported: Any, arguments: Mapping[str, str], shape: tuple[int, ...]) -> None:
    """Compare `exported` (a prepared torch.export program) with `model` on one random input of `shape`.

    arguments: graph argument -> parameter or buffer. Raises CaptureError naming what differs: the values, or the
    gradient of a parameter.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    parameters = {n: p.detach().clone().requires_grad_(p.is_floating_point()) for n, p in model.named_parameters()}
    buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
    try:
        wanted = torch.func.functional_call(model, ({**parameters, **buffers},), (x,))
        direction = torch.randn(wanted.shape, generator=generator)
        several = [_gradients(wanted, direction, parameters, scale) for scale in SCALES]
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise CaptureError(f"PyTorch itself cannot train the model: {first}") from error
    try:
        found, = exported.graph_module(*_arguments(exported, arguments, {**parameters, **buffers}, x))
        captured = _gradients(found, direction, parameters, 1.0)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise CaptureError(f"the captured graph cannot be trained by PyTorch as the model can: {first}") from error
    if not _close(found, wanted, 0.0):
        raise CaptureError("the graph that torch.export captures computes something else than the model: what it does "
                           "depends on something that is not in the graph (global state, a random number, a mode)")
    floor = FLOOR * max((_largest(g) for g in several[0].values() if g is not None), default=0.0)
    for name, gradient in captured.items():
        if not all(_close(gradient, own[name], floor) for own in several):
            raise CaptureError(f"the gradient of {name} that the captured graph has is not the model's own: a custom "
                               "autograd.Function, a hook, a write under no_grad or inference_mode changes it where "
                               "torch.export does not look; write it with detach(), no_grad() or ordinary operations")


def _gradients(y: torch.Tensor, direction: torch.Tensor, parameters: Mapping[str, torch.Tensor],
               scale: float) -> dict[str, Any]:
    """Of y in `direction`, by parameter (None: none arrives), from `scale` times the direction and divided by it."""
    names = [n for n, p in parameters.items() if p.requires_grad]
    if not y.requires_grad or not names:
        return dict.fromkeys(names)
    found = torch.autograd.grad(y, [parameters[n] for n in names], direction * scale, retain_graph=True, allow_unused=True)
    return {n: None if g is None else g / scale for n, g in zip(names, found, strict=True)}


def _arguments(exported: Any, arguments: Mapping[str, str], state: Mapping[str, torch.Tensor],
               x: torch.Tensor) -> list[torch.Tensor]:
    values = []
    for node in exported.graph.find_nodes(op="placeholder"):
        name = arguments.get(node.name)
        values.append(x if name is None else state[name] if name in state else exported.constants[name])
    return values


def _largest(value: torch.Tensor) -> float:
    return float(value.detach().nan_to_num(0.0, 0.0, 0.0).abs().max()) if value.numel() else 0.0


def _close(found: torch.Tensor | None, wanted: torch.Tensor | None, floor: float) -> bool:
    """Equal to TOLERANCE of the largest element, or to `floor`; no gradient at all is a gradient of zeros."""
    if found is None or wanted is None:
        rest = wanted if found is None else found
        return rest is None or _largest(rest) <= floor
    limit = max(floor, TOLERANCE * _largest(wanted))
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=0.0, atol=limit, equal_nan=True)
