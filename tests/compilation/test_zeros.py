"""What is zero and stays zero costs nothing: frozen zero additions are not in the compiled step, trained ones are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from algorithm.models.gate import add_gate
from algorithm.models.gram import add_gram
from algorithm.models.lora import add_lora
from compilation.passes.training import Selection
from compilation.pieces import pieces
from compilation.pipeline import Compiled, Compiler
from compilation.program import Program
from compilation.scheduling import Planner
from runtime.codegen import generate
from runtime.simulator import Simulator
from runtime.toolchain import Build
from tests.compilation.models import IMAGE, image_input
from tests.compilation.test_gradients import check


def vit(addition: str = "none") -> nn.Module:
    """Two blocks of width 24 whose addition is zero."""
    torch.manual_seed(4)
    scaled = {"init_values": 0.1} if addition == "layer scale" else {}
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3,
                              num_classes=5, **scaled).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    for block in model.blocks:
        if addition == "gram":
            add_gram(block.attn, tokens=17, dim=24, rank=4)
        elif addition == "gate":
            add_gate(block.attn, dim=24)
        elif addition == "everything":
            add_gram(add_gate(block.attn, dim=24), tokens=17, dim=24, rank=4, heads=3)
            add_lora(block.attn.proj, 3)
        elif addition == "lora":
            add_lora(block.attn.qkv, 3, 6.0)
            add_lora(block.mlp.fc2, 3)
        elif addition == "layer scale":
            nn.init.zeros_(block.ls2.gamma)
    return model


TRAINED: dict[str, Callable[[str], bool]] = {
    "biases": lambda n: "bias" in n or "head" in n, "columns": lambda n: n.endswith(("fc1.weight", "head.bias"))}


def plan_of(model: nn.Module, which: str) -> dict[str, Selection]:
    return {n: {"cols": [1, 5]} if n.endswith("fc1.weight") else "all" for n, _ in model.named_parameters()
            if TRAINED[which](n)}


def anatomy(program: Program) -> tuple[list[object], Counter[object]]:
    """The Program without the names of its tensors and the paths of its calls, which tell of the module that was there."""
    inside = {name: tuple((c.op, c.attrs, c.inputs, c.outputs) for c in region.definition.calls)
              for name, region in program.regions.items()}
    calls: list[object] = [(inside.get(c.op, c.op), c.attrs, [*c.inputs], [*c.outputs], c.updates) for c in program.calls]
    return calls, Counter((t.role, t.type, t.offset) for t in program.tensors.values())


@pytest.mark.parametrize("tight", [False, True], ids=["kept", "streamed"])
@pytest.mark.parametrize("which", TRAINED)
@pytest.mark.parametrize("addition", ["gram", "lora", "everything"])
def test_a_frozen_zero_addition_leaves_nothing_behind(addition: str, which: str, tight: bool) -> None:
    """The Program is that of the model without it: calls, bytes, flash and work."""
    model, plain = vit(addition), vit()
    plain.load_state_dict({n: v for n, v in model.state_dict().items() if not n.endswith(("_a", "_b", "_w"))})
    made: list[Compiled] = []
    for m in (model, plain):
        compiler, plan = Compiler(m, IMAGE), plan_of(plain, which)
        made.append(compiler.compile(plan, compiler.smallest_ram(plan) if tight else None))
    assert anatomy(made[0].program) == anatomy(made[1].program)
    assert made[0].macs == made[1].macs and made[0].memory == made[1].memory
    assert made[0].values.keys() == made[1].values.keys()


def test_a_zero_layer_scale_drops_its_branch() -> None:
    """Unless the branch itself is trained: its gradient is zero, but it was asked for."""
    model = vit("layer scale")
    compiler = Compiler(model, IMAGE)
    program = compiler.compile({"head.bias": "all", "blocks.0.norm1.bias": "all"}).program
    assert not [c for c in program.calls if "mlp" in c.where]
    assert not [n for n in program.tensors if "mlp" in n or "ls2" in n or "norm2" in n]
    image, x = image_input(IMAGE)
    for trained in ("blocks.0.mlp.fc1.bias", "blocks.1.ls2.gamma"):
        plan: dict[str, Selection] = {"head.bias": "all", trained: "all"}
        kept = [c.where for c in compiler.compile(plan).program.calls if "mlp" in c.where]
        assert kept and all(w.startswith(trained[:8]) for w in kept)
        check(vit("layer scale"), IMAGE, plan, image, x)


@pytest.mark.parametrize("trained", ["gram_a", "gram_b", "lora_a", "lora_b"])
def test_what_the_plan_trains_is_kept(trained: str) -> None:
    model = vit(trained[:4])
    plan: dict[str, Selection] = {n: "all" for n, _ in model.named_parameters()
                                  if n.startswith("blocks.1") and n.endswith(trained)} | {"head.bias": "all"}
    image, x = image_input(IMAGE)
    compiler = Compiler(model, IMAGE)
    forward = compiler.planner(plan).forward
    assert {n for n in forward.tensors if n.endswith(("_a", "_b", "_w")) and n.startswith("blocks.0")} == set()
    assert set(plan) <= pieces(forward).keys() < pieces(compiler.forward).keys()
    check(model, IMAGE, plan, image, x, steps=2, momentum=0.5)


@pytest.mark.parametrize("part", ["gate_w", "gate_b"])
def test_a_gate_that_the_plan_trains_is_kept(part: str) -> None:
    compiler = Compiler(vit("gate"), IMAGE)
    forward = compiler.planner({f"blocks.1.attn.{part}": "all", "head.bias": "all"}).forward
    assert {n for n in forward.tensors if "gate_" in n} == {"blocks.1.attn.gate_w", "blocks.1.attn.gate_b"}


@pytest.mark.parametrize("addition", ["gram", "lora", "layer scale", "everything"])
def test_losses_and_weights_are_the_same(addition: str, tmp_path: Path) -> None:
    """As the step that computes the zeros and adds them; but where they are terms of a gradient's sum, which then may begin
    with another term, to its rounding."""
    model = vit(addition)
    compiler = Compiler(model, IMAGE)
    plan = {n: s for n, s in plan_of(model, "biases").items() if "mlp" not in n and "norm2" not in n}
    found: list[np.ndarray] = []
    macs: list[int] = []
    for zero in (compiler.zero, frozenset[str]()):
        planner = Planner(compiler.forward, plan, compiler.shapes, 0.9, zero)
        schedule = planner.unconstrained()
        compiled = compiler.finish(schedule, schedule, None)
        macs.append(compiled.macs)
        folder = tmp_path / f"c{len(found)}"
        generate(compiled.program, compiled.values, folder)
        with Simulator(folder, compiled.program, Build(optimise="-O1")) as simulator:
            losses = [simulator.train_step(image_input(IMAGE, seed)[0], seed, 0.1) for seed in range(3)]
            weights = [v.reshape(-1) for v in simulator.trained().values()]
            found.append(np.concatenate([np.array(losses, np.float32), *weights]))
    assert macs[0] < macs[1]
    if addition in ("lora", "everything"):
        np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-7)
    else:
        np.testing.assert_array_equal(found[0], found[1])
