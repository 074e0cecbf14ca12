"""Small models and helpers for the compiler's tests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from compilation.capture import InputSpec
from compilation.interpret import Interpreter
from compilation.passes.training import Selection
from compilation.pieces import part_of, pieces, trained_parts
from compilation.pipeline import Compiled, Compiler

IMAGE = InputSpec.image((3, 16, 16), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


class FanOut(nn.Module):
    """A random graph of row-wise layers on a (rows, width) input, with values used several times.

    recipe: for each node (kind, first source, second source); sources index earlier nodes.
    """

    def __init__(self, recipe: list[tuple[str, int, int]], width: int, classes: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.layers = nn.ModuleList()
        for kind, _, _ in recipe:
            self.layers.append({"linear": nn.Linear(width, width), "norm": nn.LayerNorm(width)}.get(kind, nn.Identity()))
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nodes = [x]
        for (kind, a, b), layer in zip(self.recipe, self.layers, strict=True):
            first, second = nodes[a % len(nodes)], nodes[b % len(nodes)]
            if kind == "add":
                nodes.append(first + second)
            elif kind == "gelu":
                nodes.append(nn.functional.gelu(first))
            else:
                nodes.append(layer(first))
        total = nodes[-1]
        for n in nodes[:-1]:
            total = total + n            # every node reaches the loss, so every one has fan-out
        return self.head(total.mean(1))


def torch_step(model: nn.Module, x: torch.Tensor, label: int, plan: dict[str, Selection], lr: float,
               momentum_steps: int = 1, momentum: float = 0.0) -> tuple[list[float], dict[str, np.ndarray]]:
    """Float64 PyTorch: losses and the trained parameters after `momentum_steps` SGD steps, masked as planned."""
    model = model.double()
    named = dict(model.named_parameters())
    velocity: dict[str, torch.Tensor] = {}
    losses = []
    for _ in range(momentum_steps):
        model.zero_grad()
        loss = nn.functional.cross_entropy(model(x.double()), torch.tensor([label]))
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for name, selection in plan.items():
                g = named[name].grad
                assert g is not None
                if selection != "all":
                    mask = torch.zeros_like(g).reshape(g.shape[0], -1)
                    (axis, index), = selection.items()  # type: ignore[union-attr]
                    mask[(slice(None), index) if axis == "cols" else (index, slice(None))] = 1
                    g = g * mask.reshape(g.shape)
                velocity[name] = momentum * velocity[name] + g if name in velocity else g
                named[name] -= lr * velocity[name]
    return losses, {n: named[n].detach().numpy() for n in plan}


def image_input(spec: InputSpec, seed: int = 0) -> tuple[np.ndarray, torch.Tensor]:
    """A random uint8 image (H, W, C) and the tensor PyTorch sees for it."""
    c, h, w = spec.shape
    image = np.random.default_rng(seed).integers(0, 256, (h, w, c), dtype=np.uint8)
    value = image.astype(np.float64) * np.asarray(spec.scale, np.float64) + np.asarray(spec.shift, np.float64)
    return image, torch.from_numpy(value.transpose(2, 0, 1)[None].copy())


def interpreted(compiled: Compiled, image: np.ndarray, label: int, lr: float, steps: int = 1, momentum: float = 0.0,
                start: Mapping[str, np.ndarray] | None = None) -> tuple[list[float], dict[str, np.ndarray]]:
    """The compiled Program on the NumPy references: losses and whole trained parameters. start: what the parameters of the
    plan are before; of these, what the Program does not have, for its gradient is zero, stays as it is."""
    machine = Interpreter(compiled.program, compiled.values)
    losses = [machine.step(image, label, lr, momentum) for _ in range(steps)]
    program, final = compiled.program, {n: np.array(v, float) for n, v in (start or {}).items()}
    known = pieces(program)
    for part in trained_parts(program):
        values: dict[str, tuple[int, np.ndarray]] = {}      # a piece, whole -> its first row and its value
        for t in known[part.parameter]:
            found = part_of(program, t.name)
            name = found[0].name if found else t.name
            values[name] = t.first, np.atleast_1d(machine._value(name))
        made = np.concatenate([v for _, v in values.values()])
        if start is not None and made.size < start[part.parameter].size:
            whole = final[part.parameter].reshape(-1, *made.shape[1:])
            for first, v in values.values():
                whole[first:first + len(v)] = v
            made = whole
        final[part.parameter] = made
    return losses, final


def compile_planned(model: nn.Module, spec: InputSpec, plan: dict[str, Selection], budget: int | None = None,
                    momentum: float = 0.0) -> Compiled:
    return Compiler(model, spec).compile(plan, budget, momentum)
