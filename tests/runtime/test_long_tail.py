"""Operations without a kernel: lowered through TIR, emitted as C, run in the simulator against PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import astuple
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from algorithm.distance import distance
from algorithm.training.rounding import RandomRounding
from algorithm.training.trace import Trace
from compilation.capture import InputSpec
from compilation.cost import call_macs
from compilation.pipeline import Compiler
from runtime.codegen import generate
from runtime.errors import SimulationError
from runtime.simulator import Simulator
from runtime.toolchain import build_firmware
from runtime.validate import replay


class Gated(nn.Module):
    """Rows (N, D) -> classes, through a gate and a softplus that no kernel of ours computes."""

    def __init__(self, width: int = 12, classes: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return self.head((1 / (1 + torch.exp(-self.a(x))) * torch.log(1 + torch.exp(self.b(x))) + x).mean(1))


class Mixer(nn.Module):
    """An MLP mixer with SiLU: rearrangements, matrix products over tokens, broadcast additions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tokens = nn.Linear(12, 8), nn.Linear(4, 4)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)
        self.channels = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = x.shape[0]
        x = self.stem(x.reshape(b, 3, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, 4, 12))
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(x)
        return self.head(x.mean(1))


class Convolutions(nn.Sequential):
    """(3, 8, 8) -> classes, by hand-normalised input, padding, strides and groups, with biases everywhere."""

    def __init__(self) -> None:
        super().__init__(RootMeanSquare(), nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(
            6, 6, 3, padding=1, groups=3), nn.Sigmoid(), nn.Conv2d(6, 4, 2, stride=2), nn.Flatten(), nn.Linear(16, 4))

    MACS = 6 * 16 * 3 * 9 + 6 * 16 * 2 * 9 + 4 * 4 * 6 * 4 + 4 * 16     # of a forward pass, padding included


class RootMeanSquare(nn.Module):
    """x / sqrt(mean x^2): a square root and its inverse."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        power = (x * x).mean((1, 2, 3), keepdim=True) + 0.1
        return x * torch.rsqrt(power) + 0.01 * torch.sqrt(power)


MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "gated": (Gated, (5, 12)), "mixer": (Mixer, (3, 4, 4)), "convolutions": (Convolutions, (3, 8, 8))}


def train(model: nn.Module, plan: dict[str, str], images: np.ndarray, labels: np.ndarray, lr: float, dtype: torch.dtype,
          rounding: int | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Losses and trained parameters of a PyTorch run of a copy of the model. rounding: seed of a random rounding."""
    model = copy.deepcopy(model).to(dtype)
    chosen = {n: p for n, p in model.named_parameters() if n in plan}
    losses = []
    with nullcontext() if rounding is None else RandomRounding(rounding):
        for image, label in zip(images, labels, strict=True):
            model.zero_grad()
            loss = nn.functional.cross_entropy(model(torch.from_numpy(image).to(dtype)[None]), torch.tensor([int(label)]))
            loss.backward()
            losses.append(float(loss.detach()))
            with torch.no_grad():
                for p in chosen.values():
                    if p.grad is not None:
                        p -= lr * p.grad
    return np.array(losses), {n: p.detach().numpy() for n, p in chosen.items()}


def record(model: nn.Module, plan: dict[str, str], images: np.ndarray, labels: np.ndarray, lr: float) -> Trace:
    """The run in float64, in float32, and in float32 under random roundings."""
    run = partial(train, model, plan, images, labels, lr)
    init = {n: p.detach().numpy() for n, p in model.named_parameters() if n in plan}
    (l64, f64), (l32, f32) = run(torch.float64), run(torch.float32)
    witnesses = [run(torch.float32, seed) for seed in range(8)]
    distances = {n: np.array([astuple(distance(f[n] - exact, exact - init[n])) for _, f in witnesses])
                 for n, exact in f64.items()}
    return Trace(images, labels, np.full(len(images), lr, np.float32), l32, l64,
                 np.stack([losses for losses, _ in witnesses]), init, f32, f64, distances, {"momentum": 0.0})


@pytest.mark.parametrize("tight", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("trained", ["all", "bias"])
@pytest.mark.parametrize("name", MODELS)
def test_long_tail_trains_like_pytorch(tmp_path: Path, name: str, trained: str, tight: bool) -> None:
    torch.manual_seed(0)
    kind, shape = MODELS[name]
    model = kind().eval()
    names = [n for n, _ in model.named_parameters() if trained == "all" or n.endswith("bias")]
    plan = dict.fromkeys(names, "all")
    compiler = Compiler(model, InputSpec(shape), name)
    compiled = compiler.compile(dict(plan), compiler.smallest_ram(dict(plan)) if tight else None)
    assert any(c.op.startswith("tir:") for c in compiled.program.calls)
    generate(compiled.program, compiled.values, tmp_path / "c")
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(8, *shape)).astype(np.float32), rng.integers(0, 4, 8)
    trace = record(model, plan, images, labels, 0.1)
    with Simulator(tmp_path / "c", compiled.program) as simulator:
        check = replay(simulator, trace)
        firmware = build_firmware(tmp_path / "c")
        measured = simulator.measure(images[0], int(labels[0]), firmware=firmware)
    assert check.passed, check.failures()
    assert not firmware.undefined
    assert measured.ram_bytes == compiled.memory.total
    assert measured.macs == compiled.macs > 0
    assert measured.predict_macs == sum(call_macs(compiled.program, c)
                                        for c in compiled.program.calls[:compiled.program.predict_calls])
    if kind is Convolutions:
        assert measured.predict_macs == Convolutions.MACS


class Through(nn.Module):
    """One operation between two linears."""

    def __init__(self, body: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.head, self.body = nn.Linear(6, 6), nn.Linear(6, 3), body

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.a(x)))


@pytest.mark.parametrize("body", [
    F.relu, F.relu6, lambda x: torch.maximum(x, -x), lambda x: torch.minimum(x * 0 + 0.1, x), lambda x: x.clamp(max=1.0),
    lambda x: F.max_pool1d(x[:, None], 2).repeat(1, 1, 2).flatten(1)],
    ids=["relu", "relu6", "maximum", "minimum", "clamp", "max pool"])
def test_what_is_not_a_number_reaches_the_logits_and_is_told(body: Callable[[torch.Tensor], torch.Tensor],
                                                             tmp_path: Path) -> None:
    """As in PyTorch: a comparison that lost it would train every weight below to NaN without a word."""
    model = Through(body).eval()
    image = np.array([[0.5, -0.5, np.nan, 0.1, 0.2, 0.3]], np.float32)
    assert model(torch.from_numpy(image)).isnan().all()
    compiled = Compiler(model, InputSpec((6,))).compile({"a.weight": "all"})
    generate(compiled.program, compiled.values, tmp_path / "c")
    with Simulator(tmp_path / "c", compiled.program) as simulator:
        with pytest.raises(SimulationError, match="logits are not finite"):
            simulator.train_step(image, 0, 0.1)
        np.testing.assert_array_equal(simulator.trained()["a.weight"], model.a.weight.detach().numpy())
