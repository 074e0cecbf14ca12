"""A compiled step in the host simulator, beside float64 PyTorch: for what the Interpreter cannot run (the long tail)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compilation.capture import InputSpec
from compilation.passes.training import Selection
from compilation.pieces import trained_parts
from compilation.pipeline import Compiled, Compiler
from runtime.codegen import generate
from runtime.simulator import Simulator
from tests.compilation.models import image_input, torch_step

LR, STEPS = 0.05, 2


def trains_like_torch(model: nn.Module, spec: InputSpec, plan: dict[str, Selection] | None = None,
                      budget: int | None = None, seed: int = 0) -> Compiled:
    """Compile (everything trained, unless a plan is given), train two steps in C and in float64 PyTorch, and compare
    the losses and the update of every tensor: to 1e-4 of its largest element and float32's rounding of the weight."""
    named = dict(model.named_parameters())
    plan = plan or dict.fromkeys(named, "all")
    start = {n: named[n].detach().clone().double().numpy() for n in plan}
    compiled = Compiler(model, spec).compile(plan, budget)
    if spec.is_image:
        image, x = image_input(spec, seed)
    else:
        image = np.random.default_rng(seed).normal(size=spec.shape).astype(np.float32)
        x = torch.from_numpy(image).double()[None]
    with tempfile.TemporaryDirectory() as folder:
        generate(compiled.program, compiled.values, Path(folder) / "c")
        with Simulator(Path(folder) / "c", compiled.program) as simulator:
            losses = [simulator.train_step(image, 1, LR) for _ in range(STEPS)]
            final = simulator.trained()
    want_losses, want = torch_step(model, x, 1, plan, LR, STEPS)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5, atol=1e-6)
    for part in trained_parts(compiled.program):
        expected, before = (part.of(values[part.parameter]) for values in (want, start))
        moved = final[part.name].astype(np.float64).ravel() - before
        limit = 1e-4 * np.abs(expected - before).max() + STEPS * 1.2e-7 * np.abs(before).max()
        np.testing.assert_allclose(moved, expected - before, rtol=0, atol=limit, err_msg=part.parameter)
    return compiled
