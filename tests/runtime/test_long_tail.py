"""Operations without a kernel: lowered through TIR, emitted as C, run in the simulator against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from algorithm.training.trace import Trace
from compilation.capture import InputSpec
from compilation.pipeline import Compiler
from runtime.codegen import generate
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
        return self.head((torch.sigmoid(self.a(x)) * torch.tanh(self.b(x)) + x).mean(1))


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


MODELS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {"gated": (Gated, (5, 12)), "mixer": (Mixer, (3, 4, 4))}


def record(model: nn.Module, plan: dict[str, str], images: np.ndarray, labels: np.ndarray, lr: float) -> Trace:
    """The PyTorch run in float32 and float64."""
    init = {n: p.detach().numpy().copy() for n, p in model.named_parameters() if n in plan}
    runs = {}
    for dtype in (torch.float32, torch.float64):
        model.load_state_dict({**model.state_dict(), **{n: torch.from_numpy(v) for n, v in init.items()}})
        model.to(dtype)
        losses = []
        for image, label in zip(images, labels, strict=True):
            model.zero_grad()
            logits = model(torch.from_numpy(image).to(dtype)[None])
            loss = nn.functional.cross_entropy(logits, torch.tensor([int(label)]))
            loss.backward()
            losses.append(float(loss.detach()))
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if name in plan and p.grad is not None:
                        p -= lr * p.grad
        final = {n: p.detach().numpy().copy() for n, p in model.named_parameters() if n in plan}
        runs[dtype] = (np.array(losses), final)
        model.to(torch.float32)
    (l32, f32), (l64, f64) = runs.values()
    return Trace(images, labels, l32, l64, init, f32, f64, {"lr": lr, "momentum": 0.0})


@pytest.mark.parametrize("trained", ["all", "bias"])
@pytest.mark.parametrize("name", MODELS)
def test_long_tail_trains_like_pytorch(tmp_path: Path, name: str, trained: str) -> None:
    torch.manual_seed(0)
    kind, shape = MODELS[name]
    model = kind().eval()
    names = [n for n, _ in model.named_parameters() if trained == "all" or n.endswith("bias")]
    plan = dict.fromkeys(names, "all")
    compiled = Compiler(model, InputSpec(shape), name).compile(dict(plan))
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
