"""Models imported as operations on windows alone: no long tail in the blocks, and they train as in PyTorch (float64)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from algorithm import build_model
from algorithm.models import ModelConfig
from algorithm.models.lora import add_lora
from compilation.capture import InputSpec
from compilation.passes.training import Selection
from compilation.pieces import pieces
from compilation.pipeline import Compiled, Compiler
from compilation.program import Program
from runtime.codegen import generate
from tests.compilation.in_c import trains_like_torch
from tests.compilation.models import IMAGE, image_input, interpreted, torch_step
from tests.compilation.test_operations import ACTIVATIONS, ATTENTION, MOVES, Bank, Function

ROWS, WIDTH, HEADS = 6, 12, 3


def randomised(model: nn.Module, std: float = 0.3) -> nn.Module:
    torch.manual_seed(1)
    for p in model.parameters():
        nn.init.normal_(p, std=std)
    return model.eval()


def vit(lora: tuple[str, ...] = (), **options: Any) -> nn.Module:
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=24, depth=2, num_heads=3,
                              num_classes=5, **options)
    for block in model.blocks:
        for target in lora:
            add_lora(block.get_submodule(target), 3, 6.0)
    return randomised(model, 0.2)


def additions(**gram: Any) -> nn.Module:
    config = ModelConfig(name="vit_tiny_patch16_224", img_size=16, patch_size=8, num_classes=5, weights="none",
                         gram={"enabled": True, "rank": 4, **gram},
                         extra={"depth": 2, "embed_dim": 24, "num_heads": 3, "init_values": 0.5})
    return randomised(build_model(config), 0.2)


class Attend(nn.Module):
    """y = x + proj(attention(q, k, v)), q, k, v of layers of their own, with an optional norm of queries and keys."""

    def __init__(self, norm: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH // HEADS) if norm else nn.Identity()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).view(1, ROWS, HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        o = F.scaled_dot_product_attention(self.norm(q), self.norm(k), v, scale=self.scale)
        return x + self.proj(o.transpose(1, 2).reshape(1, ROWS, WIDTH))


class Pool(nn.Module):
    """y = x + proj(attention of all rows to the first two, with values of another size)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * HEADS)
        self.proj = nn.Linear(2 * HEADS, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(y).view(1, y.shape[1], HEADS, -1).transpose(1, 2)
                   for f, y in ((self.q, x), (self.k, x[:, :2]), (self.v, x[:, :2])))
        return x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, ROWS, -1))


class Gated(nn.Module):
    """y = out(silu(a) * b), a and b of one layer or of two."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(WIDTH, 2 * WIDTH)] if packed else [nn.Linear(WIDTH, WIDTH) for _ in "ab"])
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = [f(x) for f in self.layers]
        a, b = made if len(made) == 2 else made[0].chunk(2, -1)
        return x + self.out(F.silu(a) * b)


class Classifier(nn.Module):
    """The mean of the rows of what two layers make, classified."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(make(), nn.LayerNorm(WIDTH), make())
        self.head = nn.Linear(WIDTH, 4)
        randomised(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "separate": lambda: Classifier(Attend), "scale": lambda: Classifier(lambda: Attend(scale=0.4)),
    "separate, normed": lambda: Classifier(lambda: Attend(norm=True)),
    "gated": lambda: Classifier(lambda: Gated(False)), "gated, packed": lambda: Classifier(lambda: Gated(True)),
    "vit": vit, "vit, average": lambda: vit(global_pool="avg"), "vit, normed": lambda: vit(qk_norm=True),
    "vit, no bias": lambda: vit(qkv_bias=False),
    "vit, gated": lambda: vit(mlp_layer=timm.layers.SwiGLUPacked),
    "vit, gated apart": lambda: vit(mlp_layer=timm.layers.SwiGLU),
    "lora": lambda: vit(("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
    "lora, normed": lambda: vit(("attn.qkv",), qk_norm=True), "gram": additions}
COUNTS = {"separate": {"attention": 2, "linear": 9}, "scale": {"attention": 2, "mul_const": 0},
          "separate, normed": {"layer_norm": 5}, "gated": {"silu": 2, "mul": 2},
          "gated, packed": {"silu": 2, "mul": 2, "linear": 7},
          "vit": {"attention": 2, "linear": 13}, "gram": {"matmul": 4, "matmul_tn": 2, "mul_const": 2, "scale": 4},
          "lora": {"linear": 2 * (3 + 1 + 3 + 3 + 3 + 3) + 1}, "vit, normed": {"layer_norm": 9}}


def inputs(model: nn.Module) -> tuple[InputSpec, np.ndarray, torch.Tensor]:
    if not isinstance(model, Classifier):
        return IMAGE, *image_input(IMAGE)
    x = np.random.default_rng(0).normal(size=(ROWS, WIDTH))
    return InputSpec((ROWS, WIDTH)), x, torch.from_numpy(x)[None]


def check(model: nn.Module, plan: dict[str, Selection], budget: int | None = None, momentum: float = 0.9) -> Compiled:
    spec, image, x = inputs(model)
    compiled = Compiler(model, spec).compile(plan, budget, momentum)
    start = {n: p.detach().clone().double().numpy() for n, p in model.named_parameters() if n in plan}
    losses, final = interpreted(compiled, image, 1, 0.1, 2, momentum, start)
    want_losses, want = torch_step(model, x, 1, plan, 0.1, 2, momentum)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-9)
    assert set(final) == set(want)
    for name in want:
        moved, expected = final[name].reshape(want[name].shape) - start[name], want[name] - start[name]
        np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-9 * max(1.0, np.abs(expected).max()), err_msg=name)
    return compiled


def forward(name: str) -> Program:
    model = MODELS[name]()
    return Compiler(model, inputs(model)[0]).forward


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_leaves_alone(name: str) -> None:
    """None of the long tail, and no window is copied out."""
    ops = [c.op for c in forward(name).calls]
    assert not [op for op in ops if op.startswith("relax:")]
    assert "columns" not in ops
    for op, count in COUNTS.get(name, {}).items():
        assert ops.count(op) == count, op


@pytest.mark.parametrize("name", MODELS)
def test_they_train_as_in_pytorch(name: str) -> None:
    model = MODELS[name]()
    check(model, dict.fromkeys((n for n, _ in model.named_parameters()), "all"))


@pytest.mark.parametrize("axis", ["cols", "rows"])
@pytest.mark.parametrize("name", ["vit", "vit, gated", "lora"])
def test_selections_speak_of_the_parameter(name: str, axis: str) -> None:
    """A quarter of the columns, or of the rows, wherever those fall in the pieces."""
    model = MODELS[name]()
    plan: dict[str, Selection] = {}
    for n, p in model.named_parameters():
        if n.startswith("blocks.1") and n.endswith("weight") and p.ndim == 2:
            size = p.shape[axis == "cols"]
            plan[n] = {axis: sorted(np.random.default_rng(7).choice(size, size // 4, replace=False).tolist())}
        elif n.startswith("blocks.1") and n.endswith("bias"):
            plan[n] = "all"
    check(model, plan)


@pytest.mark.parametrize("functions", [ACTIVATIONS, MOVES], ids=["activations", "moves"])
def test_the_long_tail_stands_beside_leaves(functions: dict[str, Function]) -> None:
    """In C: activations, products, windows of columns, and what there is no kernel for."""
    bank = Bank({n.replace(".", "_"): f for n, f in functions.items()})
    compiled = trains_like_torch(bank, InputSpec((5, 8)))
    wanted = {"silu", "sigmoid", "tanh", "mul"} if functions is ACTIVATIONS else {"columns", "columns_grad"}
    assert {c.op for c in compiled.program.calls} >= wanted


@pytest.mark.parametrize("name", ["causal", "mask", "added", "weights"])
def test_masks_are_spelled_out(name: str) -> None:
    f, make = ATTENTION[name]
    torch.manual_seed(1)
    model = Bank({name: f}, {name: make()})
    ops = [c.op for c in Compiler(model, InputSpec((5, 8))).forward.calls]
    trains_like_torch(model, InputSpec((5, 8)))
    assert "columns" not in ops and "attention" not in ops and ops.count("linear") >= 5        # q, k and v apart


@pytest.mark.parametrize("name", ["multihead", "encoder", "norm_first", "separate", "packed", "scale", "flat"])
def test_attention_of_every_kind_is_made_of_leaves(name: str) -> None:
    f, make = ATTENTION[name]
    ops = [c.op for c in Compiler(Bank({name: f}, {name: make()}), InputSpec((5, 8))).forward.calls]
    assert ("attention" in ops or ops.count("matmul") + ops.count("matmul_nt") == 2) and "columns" not in ops
    assert not {"relax:permute_dims", "relax:strided_slice", "relax:matmul"} & set(ops)


def test_kernels_that_take_panels_are_called_by_regions(tmp_path: Path) -> None:
    compiled = check(MODELS["separate"](), {"head.bias": "all"})
    generate(compiled.program, compiled.values, tmp_path / "c")
    text = (tmp_path / "c" / "vit_train.c").read_text()
    assert "vt_linear(&args, step)" in text and "static void region_0(" in text


def test_keys_may_be_others_than_the_queries() -> None:
    """Fewer keys, and values of another size (the rows themselves are cut out by the long tail, which runs only in C)."""
    ops = [c.op for c in Compiler(Classifier(Pool), InputSpec((ROWS, WIDTH))).forward.calls]
    assert ops.count("attention") == 2 and "relax:matmul" not in ops
    trains_like_torch(Classifier(Pool), InputSpec((ROWS, WIDTH)))


def test_one_row_is_made_where_one_is_read() -> None:
    """With the class token alone read, the last attention has one query; it trains as in PyTorch."""
    model = vit()
    plan: dict[str, Selection] = {"blocks.0.norm1.bias": "all", "head.weight": "all"}
    compiler = Compiler(model, IMAGE)
    program = check(model, plan, compiler.smallest_ram(plan, 0.9)).program
    inside = [program.regions[c.op].definition for c in program.calls if c.op in program.regions]
    queries = [d.tensors[c.inputs["q"]].shape[0] for d in inside for c in d.calls if c.op == "attention"]
    assert queries[0] == 5 and min(queries) in (1, 3)       # of each head one row, where it is asked for those alone


def test_rows_of_one_piece_alone() -> None:
    """Rows that begin and end in the keys, all the queries with one value, and a piece that nothing is chosen of."""
    for rows in ([25, 30, 47], [*range(24), 50], [0, 71], list(range(24, 48))):
        compiled = check(vit(), {"blocks.0.attn.qkv.weight": {"rows": rows}, "head.bias": "all"})
        found = pieces(compiled.program)["blocks.0.attn.qkv.weight"]
        assert {t.first for t in found} == {0, 24, 48}
