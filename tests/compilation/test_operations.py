"""What is spelled out in other operations, or goes through the long tail, computes and trains as in PyTorch.

Many operations stand side by side in one model, each behind a linear of its own, so that one build in C tests them all
and a wrong gradient is found at the linear below the operation at fault.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compilation.capture import InputSpec
from tests.compilation.in_c import trains_like_torch

Function = Callable[..., torch.Tensor]
ROWS, WIDTH = 5, 8


class Bank(nn.Module):
    """the mean over rows and functions of f(linear_f(x)), each with the module it may need."""

    def __init__(self, functions: dict[str, Function], modules: dict[str, nn.Module] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.functions = functions
        self.below = nn.ModuleDict({n: nn.Linear(WIDTH, WIDTH) for n in functions})
        self.layer = nn.ModuleDict(modules or {})
        self.head = nn.Linear(WIDTH, 4)
        for name, p in self.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(p, std=0.6)
        for m in self.modules():
            if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.normal_(m.running_mean)
                nn.init.uniform_(m.running_var, 0.5, 2.0)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for name, f in self.functions.items():
            y = self.below[name](x)
            y = f(self.layer[name], y) if name in self.layer else f(y)
            total = total + y.mean(1)
        return self.head(total / len(self.functions))


ACTIVATIONS: dict[str, Function] = {
    "relu6": lambda x: F.relu6(x * 8), "hardswish": lambda x: F.hardswish(x * 3),
    "hardsigmoid": lambda x: F.hardsigmoid(x * 3),
    "hardtanh": F.hardtanh, "clamp": lambda x: x.clamp(-0.3, 0.5), "clamp_min": lambda x: x.clamp(min=0.1),
    "leaky": F.leaky_relu, "elu": F.elu, "selu": F.selu, "celu": lambda x: F.celu(x, 1.5),
    "softplus": lambda x: F.softplus(x * 15),
    "softplus_beta": lambda x: F.softplus(x, 2.0), "mish": F.mish, "silu": F.silu, "logsigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink, "threshold": lambda x: F.threshold(x, 0.1, 0.0), "rrelu": F.rrelu,
    "relu_": lambda x: F.relu_(x * 2), "glu": lambda x: F.glu(torch.cat([x, x * 2], -1))}
ARITHMETIC: dict[str, Function] = {
    "square": torch.square, "pow3": lambda x: x ** 3, "pow1.5": lambda x: (x * x + 1) ** 1.5,
    "pow-1": lambda x: (x * x + 1) ** -1,
    "rsqrt": lambda x: (x * x + 1).rsqrt(), "exp": torch.exp, "log1p": lambda x: (x * x).log1p(), "erf": torch.erf,
    "abs": torch.abs,
    "alpha": lambda x: torch.add(x, x * x, alpha=3), "rsub": lambda x: 1 - x * x, "div": lambda x: 1 / (x * x + 1),
    "maximum": lambda x: torch.maximum(x, 0.5 * x + 0.1), "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "masked": lambda x: x.masked_fill(x > 0.5, 0.0), "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3), "sign": lambda x: x * x.sign(), "add_": lambda x: (x * 2).add_(1)}
REDUCTIONS: dict[str, Function] = {
    "softmax": lambda x: x.softmax(-1), "log_softmax": lambda x: x.log_softmax(1),
    "logsumexp": lambda x: x - x.logsumexp(-1, True),
    "std": lambda x: x / x.std(-1, keepdim=True), "var": lambda x: x * x.var(1, keepdim=True),
    "sum": lambda x: x * x.sum(1, True),
    "normalize": lambda x: F.normalize(x, dim=-1), "bmm": lambda x: torch.bmm(x, x.transpose(1, 2)) @ x,
    "einsum": lambda x: torch.einsum("bnd,bmd->bnm", x, x) @ x, "outer": lambda x: x + torch.outer(x[0, 0], x[0, 1]).mean()}


def put(x: torch.Tensor) -> torch.Tensor:
    y = x * 1.5
    y[:, 1:3] = 2.0
    y[:, :, 0] = x[:, :, 1] * 3
    y[:, :, 2:4].mul_(2.0)
    return y


MOVES: dict[str, Function] = {
    "slices": lambda x: torch.cat([x[:, 1:], x[:, :1] * 2], 1), "steps": lambda x: torch.cat([x[:, ::2], x[:, 1:3]], 1),
    "split": lambda x: torch.cat([p * (i + 1) for i, p in enumerate(x.split(3, -1))], -1),
    "unbind": lambda x: torch.stack([u * (i + 1) for i, u in enumerate(x.unbind(1))], 1),
    "chunk": lambda x: torch.cat(x.chunk(2, -1)[::-1], -1) * x, "pad": lambda x: F.pad(x, (0, 0, 1, 0))[:, :-1] * x,
    "flip": lambda x: x.flip(1) * x, "roll": lambda x: x.roll((1, 2), (1, 2)) * x, "repeat": lambda x: x.repeat(1, 2, 1),
    "expand": lambda x: x * x[:, :1].expand(-1, ROWS, -1), "squeeze": lambda x: (x.unsqueeze(2) * 2).squeeze(2),
    "transposed": lambda x: (x.transpose(1, 2) * x.transpose(1, 2)).transpose(1, 2), "put": put}


def swapped(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m(x.transpose(1, 2)).transpose(1, 2)


def own(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m(x)


LAYERS: dict[str, tuple[Function, Callable[[], nn.Module]]] = {
    "prelu": (own, nn.PReLU), "prelu8": (swapped, lambda: nn.PReLU(WIDTH)),
    "layer_norm2": (own, lambda: nn.LayerNorm((ROWS, WIDTH))),
    "no_bias": (own, lambda: nn.LayerNorm(WIDTH, bias=False)),
    "no_affine": (own, lambda: nn.LayerNorm(WIDTH, elementwise_affine=False)),
    "rms_norm": (own, lambda: nn.RMSNorm(WIDTH)), "group_norm": (swapped, lambda: nn.GroupNorm(2, WIDTH)),
    "batch_norm": (swapped, lambda: nn.BatchNorm1d(WIDTH)), "conv1d": (swapped,
                                                                       lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1)),
    "plain_batch_norm": (swapped, lambda: nn.BatchNorm1d(WIDTH, affine=False))}


def qkv(m: nn.Module, x: torch.Tensor, **options: Any) -> torch.Tensor:
    heads = m(x).view(1, ROWS, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(*heads, **options).transpose(1, 2).reshape(1, ROWS, WIDTH)


def separate(m: Any, x: torch.Tensor) -> torch.Tensor:
    heads = (p(x).view(1, ROWS, 2, WIDTH // 2).transpose(1, 2) for p in m)
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(1, ROWS, WIDTH)


def packed() -> nn.Module:
    return nn.Linear(WIDTH, 3 * WIDTH)


ATTENTION: dict[str, tuple[Function, Callable[[], nn.Module]]] = {
    "multihead": (lambda m, x: m(x, x, x, need_weights=False)[0], lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True)),
    "weights": (lambda m, x: m(x, x, x)[0], lambda: nn.MultiheadAttention(WIDTH, 2, batch_first=True)),
    "encoder": (own, lambda: nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=True)),
    "norm_first": (own, lambda: nn.TransformerEncoderLayer(WIDTH, 2, 12, activation="gelu", norm_first=True,
                                                           batch_first=True)),
    "separate": (separate, lambda: nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))),
    "causal": (lambda m, x: qkv(m, x, is_causal=True), packed), "scale": (lambda m, x: qkv(m, x, scale=0.1), packed),
    "mask": (lambda m, x: qkv(m, x, attn_mask=torch.ones(ROWS, ROWS).tril().bool()), packed),
    "added": (lambda m, x: qkv(m, x, attn_mask=torch.arange(25.0).view(ROWS, ROWS) / 25), packed),
    "flat": (lambda m, x: F.scaled_dot_product_attention(*m(x).chunk(3, -1)), packed), "packed": (qkv, packed)}
RECURRENT: dict[str, tuple[Function, Callable[[], nn.Module]]] = {
    "gru": (lambda m, x: m(x)[0], lambda: nn.GRU(WIDTH, WIDTH, batch_first=True)),
    "lstm": (lambda m, x: m(x)[0], lambda: nn.LSTM(WIDTH, WIDTH, batch_first=True))}


@pytest.mark.parametrize("functions", [ACTIVATIONS, ARITHMETIC, REDUCTIONS, MOVES],
                         ids=["activations", "arithmetic", "reductions", "moves"])
def test_functions_train_like_pytorch(functions: dict[str, Function]) -> None:
    safe = {n.replace(".", "_").replace("-", "m"): f for n, f in functions.items()}
    trains_like_torch(Bank(safe), InputSpec((ROWS, WIDTH)))


@pytest.mark.parametrize("layers", [LAYERS, ATTENTION, RECURRENT], ids=["layers", "attention", "recurrent"])
def test_layers_train_like_pytorch(layers: dict[str, tuple[Function, Callable[[], nn.Module]]]) -> None:
    torch.manual_seed(1)
    made = {n: make() for n, (_, make) in layers.items()}
    trains_like_torch(Bank({n: f for n, (f, _) in layers.items()}, made), InputSpec((ROWS, WIDTH)))


class Images(nn.Module):
    """A convolution, then parallel branches on (1, 4, 4, 4), each averaged over its positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm, self.group = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.one, self.each = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.rows = nn.LayerNorm(4)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 4)
        nn.init.normal_(self.norm.running_mean, std=0.3)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.norm(self.stem(x)))
        branches = [self.group(x), self.one(x), self.each(x), F.max_pool2d(x, 2), F.max_pool2d(x, 3, 2, 1),
                    F.avg_pool2d(x, 2),
                    F.adaptive_avg_pool2d(x, 2), F.interpolate(x, scale_factor=2) * 0.5, F.adaptive_avg_pool2d(x * x, 1),
                    self.rows(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), F.pixel_shuffle(x, 2).repeat(1, 4, 1, 1)]
        return self.head(torch.stack([b.mean((2, 3)) for b in branches]).mean(0))


@pytest.mark.parametrize("image", [False, True], ids=["float", "image"])
def test_a_convolutional_network_trains_like_pytorch(image: bool) -> None:
    """Evaluation-mode batch norm uses its running statistics, its own epsilon, and trains weight and bias."""
    spec = InputSpec.image((3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)) if image else InputSpec((3, 8, 8))
    model = Images()
    model.norm.eps = 0.01
    trains_like_torch(model, spec)


class Tied(nn.Module):
    """One matrix in two layers, and once more as it is, transposed."""

    def __init__(self, tail: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.tail = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), tail
        self.b.weight = self.a.weight
        self.head = nn.Linear(6, 4)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.b(F.gelu(self.a(x))))
        return self.head(x @ self.a.weight if self.tail else x)


@pytest.mark.parametrize("plan", [None, {"a.weight": {"cols": [1, 4]}, "a.bias": "all"}, {"a.weight": {"rows": [0, 5]}}],
                         ids=["all", "columns", "rows"])
def test_tied_weights_get_the_sum_of_their_gradients(plan: dict[str, Any] | None) -> None:
    trains_like_torch(Tied(tail=False), InputSpec((6,)), plan)


def test_tied_weights_that_are_read_as_they_are() -> None:
    from compilation.errors import PlanError

    trains_like_torch(Tied(tail=True), InputSpec((6,)))
    with pytest.raises(PlanError, match="reads it whole, so it cannot be trained in part"):
        trains_like_torch(Tied(tail=True), InputSpec((6,)), {"a.weight": {"cols": [1]}})
