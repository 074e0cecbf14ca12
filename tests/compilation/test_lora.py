"""LoRA is two more linears in a region, whatever they are added to; the compiled step trains like PyTorch's."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from algorithm.models.lora import LoraLinear, add_lora
from compilation.passes.form import form_regions
from compilation.passes.training import Selection
from compilation.pipeline import Compiler
from compilation.program import Call, Program
from tests.compilation.models import IMAGE, image_input
from tests.compilation.test_gradients import check

LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def vit(targets: tuple[str, ...] = LINEARS, alpha: float = 6.0, **options: Any) -> torch.nn.Module:
    """Two blocks of width 24 with LoRA of rank 3; every parameter away from 0."""
    torch.manual_seed(2)
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3,
                              num_classes=5, **options).eval()
    for block in model.blocks:
        for target in targets:
            add_lora(block.get_submodule(target), 3, alpha)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return model


def formed(model: torch.nn.Module) -> Program:
    program = Compiler(model, IMAGE).forward.copy()
    assert form_regions(program) == 4
    others = [c.op for c in program.calls if c.op not in program.regions]
    assert others == ["patch_embed", "layer_norm", "take_row", "linear"]
    return program


def parameters(call: Call) -> set[str]:
    """The low-rank parameters that it reads, from its module on."""
    return {t.removeprefix(f"{call.where}.") for t in call.inputs.values() if "lora" in t}


class Turned(LoraLinear):
    """The addition first, and no scale."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(input, self.lora_a), self.lora_b) + F.linear(input, self.weight, self.bias)


class Bent(LoraLinear):
    """An adapter: the low-rank numbers pass an activation."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.base(input) + F.linear(F.relu(F.linear(input, self.lora_a)), self.lora_b)


class Shared(LoraLinear):
    """The low-rank product is read once more."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        low = F.linear(F.linear(input, self.lora_a), self.lora_b)
        return (self.base(input) + low) + low


@pytest.mark.parametrize("targets", [(), ("attn.qkv",), ("attn.proj", "mlp.fc2"), LINEARS],
                         ids=["none", "qkv", "two", "all"])
def test_lora_is_in_the_regions_of_the_block(targets: tuple[str, ...]) -> None:
    """No low-rank number of a token outside them. (lora_b of the packed q, k, v is in pieces, as its weight is.)"""
    program = formed(vit(targets))
    for call in [c for c in program.calls if c.op in program.regions]:
        part = "attn" if "attention" in program.chain(call) else "mlp"
        inside = [t for t in targets if t.startswith(part)]
        assert {name.split("[")[0] for name in parameters(call)} == {f"{t}.lora_{ab}" for t in inside for ab in "ab"}
        scales = [c.attrs["value"] for c in program.regions[call.op].definition.calls if c.op == "mul_const"]
        assert scales == [2.0] * sum(3 if t == "attn.qkv" else 1 for t in inside)


@pytest.mark.parametrize("kind", [Turned, Bent, Shared])
def test_any_low_rank_addition_is_in_the_regions(kind: type[LoraLinear]) -> None:
    model = vit(("attn.qkv", "mlp.fc2"))
    for block in model.blocks:
        block.attn.qkv.__class__ = block.mlp.fc2.__class__ = kind
    program = formed(model)
    assert all(parameters(c) for c in program.calls if c.op in program.regions)
    image, x = image_input(IMAGE)
    plan: dict[str, Selection] = {n: "all" for n, _ in model.named_parameters() if "lora" in n or "head" in n}
    check(model, IMAGE, plan, image, x)


PLANS = {"lora": lambda n: "lora" in n, "lora and biases": lambda n: "lora" in n or "bias" in n or "norm" in n,
         "one matrix each": lambda n: n.endswith(("qkv.lora_b", "fc1.lora_a", "head.bias")),
         "frozen lora": lambda n: "norm" in n or "head" in n, "everything": lambda n: True}


@pytest.mark.parametrize("tight", [False, True], ids=["kept", "streamed"])
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("options", [{}, {"global_pool": "avg", "init_values": 0.3}], ids=["class token", "average"])
def test_training_is_pytorch_s(name: str, options: dict[str, Any], tight: bool) -> None:
    model = vit(**options)
    image, x = image_input(IMAGE, 4)
    plan: dict[str, Selection] = {n: "all" for n, _ in model.named_parameters() if PLANS[name](n)}
    limit = Compiler(model, IMAGE).smallest_ram(plan, momentum=0.9) if tight else None
    check(model, IMAGE, plan, image, x, limit, steps=2, momentum=0.9)


def test_lora_costs_little_memory_beside_its_weights() -> None:
    """At the smallest RAM the arena grows by the low-rank numbers of the tokens and by the sums for A and B only."""
    arenas = []
    for targets in ((), ("attn.qkv", "attn.proj")):
        model = vit(targets)
        plan: dict[str, Selection] = {n: "all" for n, _ in model.named_parameters()
                                      if n.startswith("blocks") and n.endswith(("lora_a", "lora_b", "norm1.bias"))}
        arenas.append(Compiler(model, IMAGE).planner(plan).smallest().peak)
    tokens, rank, width, head = 17, 3, 24, 8
    assert arenas[1] - arenas[0] <= 4 * (4 * tokens * rank + 4 * head * rank + 2 * width * rank + 16 * tokens)
