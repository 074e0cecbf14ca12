"""Regions: which calls become one, that equal blocks are one region, and that they compute and train as the calls did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import SwiGLU, SwiGLUPacked
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from algorithm.models.gram import add_gram
from algorithm.models.lora import add_lora
from compilation.capture import InputSpec
from compilation.interpret import Interpreter
from compilation.judge import judge
from compilation.passes.form import candidates, form_regions
from compilation.passes.narrow import narrow_rows
from compilation.passes.training import (
    Selection,
    add_loss,
    add_updates,
    apply_plan,
    check_plan,
    make_matrices,
    parameter_values,
)
from compilation.passes.wrap import wrap_leaves
from compilation.pieces import pieces
from compilation.pipeline import Compiler
from compilation.program import VIEW, Program, Role
from compilation.program_file import from_json
from compilation.regions.region import Region
from compilation.tvm_adapter import differentiate, relax_ops, vjp
from compilation.verify import verify
from tests.compilation.models import IMAGE, FanOut, image_input, interpreted, torch_step


def vit(depth: int = 2, **options: object) -> nn.Module:
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=depth, num_heads=3,
                              num_classes=5, **options).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.15)
    return model


class Chain(nn.Module):
    """linear-relu-linear ... on tokens, then the mean and a head."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1], 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.head(self.layers[-1](x).mean(1))


def training_step(compiler: Compiler, plan: dict[str, Selection], formed: bool, momentum: float = 0.0) -> Program:
    """The whole step on unplaced tensors, in program order."""
    program = compiler.forward.copy()
    program.momentum = momentum
    narrow_rows(program)
    if formed:
        form_regions(program)
    add_loss(program)
    make_matrices(program)
    verify(program, "forward")
    plan = check_plan(program, plan, compiler.shapes)
    backward, gradients = differentiate(program, list(plan))
    apply_plan(program, plan, momentum)
    add_updates(program, backward, gradients)
    verify(program, "updates")
    return program


def trained(compiler: Compiler, program: Program, image: np.ndarray, steps: int = 1,
            momentum: float = 0.0) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses, and the trained tensors, after steps in float64."""
    machine = Interpreter(program, parameter_values(program, compiler.exported.parameters))
    losses = [machine.step(image, 1, 0.1, momentum) for _ in range(steps)]
    found = {p: [machine.memory[t.name] for t in tensors if t.role is Role.TRAINED]
             for p, tensors in pieces(program).items()}
    return losses, {p: np.concatenate(values) for p, values in found.items() if values}


def check(model: nn.Module, spec: InputSpec, plan: dict[str, Selection], image: np.ndarray, x: torch.Tensor,
          momentum: float = 0.0) -> Program:
    """Two steps with regions give what two steps without them give, and what PyTorch gives."""
    compiler = Compiler(model, spec)
    formed, plain = (training_step(compiler, plan, f, momentum) for f in (True, False))
    losses, moved = trained(compiler, formed, image, 2, momentum)
    want_losses, want = trained(compiler, plain, image, 2, momentum)
    assert moved.keys() == want.keys()
    np.testing.assert_allclose(losses, want_losses, rtol=1e-12)
    for name in want:
        np.testing.assert_allclose(moved[name], want[name], rtol=0, atol=1e-12, err_msg=name)
    torch_losses, by_torch = torch_step(model, x, 1, plan, 0.1, 2, momentum)
    np.testing.assert_allclose(losses, torch_losses, rtol=1e-9)
    for name in want:
        if not isinstance(plan[name], str):
            continue
        got = moved[name].reshape(by_torch[name].shape)
        np.testing.assert_allclose(got, by_torch[name], rtol=0, atol=1e-9, err_msg=name)
    return formed


def everything(model: nn.Module) -> dict[str, Selection]:
    return dict.fromkeys((n for n, _ in model.named_parameters()), "all")


def regions(program: Program) -> Counter[str]:
    """Operations in a region -> how many calls of such regions there are."""
    return Counter(program.chain(c) for c in program.calls if c.op in program.regions)


MLP = "layer_norm linear gelu linear add"


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}, {"init_values": 0.3}, {"qkv_bias": False}],
                         ids=["class token", "average", "layer scale", "no qkv bias"])
def test_a_vit_trains_alike_with_regions(options: dict[str, object]) -> None:
    model = vit(**options)
    program = check(model, IMAGE, everything(model), *image_input(IMAGE), momentum=0.9)
    grads = [c for c in program.calls if c.op in program.regions and any(s.startswith("d_") for s in c.outputs)]
    assert grads and all(c.updates for c in grads)


def lora_gram_and_layer_scale() -> nn.Module:
    model = vit(init_values=0.3)
    for block in model.blocks:
        for linear in (block.attn.qkv, block.mlp.fc1):
            add_lora(linear, 2)
        add_gram(block.attn, 17, 24, 4)
    for p in model.parameters():
        nn.init.normal_(p, std=0.15)
    return model


class Separate(nn.Module):
    """Attention with a linear each for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor, attn_mask: None = None, is_causal: bool = False) -> torch.Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def separate() -> nn.Module:
    model = vit()
    for block in model.blocks:
        block.attn = Separate(24, 3)
    return model.eval()


ATTENTION = "layer_norm linear linear linear attention linear add"
GATED = "layer_norm linear linear gelu mul linear add"
VARIANTS = {
    "silu": (partial(vit, act_layer=nn.SiLU), {ATTENTION, "layer_norm linear silu linear add"}),
    "swiglu": (partial(vit, mlp_layer=SwiGLU), {ATTENTION, GATED}),
    "packed swiglu": (partial(vit, mlp_layer=SwiGLUPacked), {ATTENTION, GATED}),
    "qk norm": (partial(vit, qk_norm=True),
                {"layer_norm linear linear linear layer_norm layer_norm attention linear add", MLP}),
    "separate": (separate, {ATTENTION, MLP}),
    "lora, gram and layer scale": (lora_gram_and_layer_scale,
                                   {"layer_norm linear linear linear mul_const add gelu linear scale add"}),
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variants_are_two_regions_a_block(variant: tuple[Callable[[], nn.Module], set[str]]) -> None:
    """No line of the passes names any of them."""
    make, want = variant
    model = make()
    program = check(model, IMAGE, everything(model), *image_input(IMAGE))
    forward = [c for c in program.calls if "y" in c.outputs and c.op in program.regions]
    assert [c.where for c in forward] == ["blocks.0", "blocks.0", "blocks.1", "blocks.1"]
    assert want <= regions(program).keys()
    for a in forward[0::2]:
        assert all(c.op != "take_row" or (a is forward[2] and c.inputs["x"] == "x")       # of the block's input alone
                   for c in program.regions[a.op].definition.calls)


def test_token_mixing_is_split_around_what_is_no_leaf() -> None:
    torch.manual_seed(2)
    model = MlpMixer(img_size=64, patch_size=16, embed_dim=8, num_blocks=2, num_classes=5, mlp_ratio=(3.0, 2.0)).eval()
    program = Compiler(model, InputSpec.image((3, 64, 64), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))).forward.copy()
    assert form_regions(program) == 4
    verify(program, "form")
    assert regions(program) == {"linear gelu linear": 2, MLP: 2}
    assert len(program.regions) == 2


class Inverted(nn.Module):
    """Two inverted residuals: convolutions are no leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)
        self.layers = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 24, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 1, groups=24),
                                                  nn.ReLU(), nn.Conv2d(24, 8, 1)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x.mean((2, 3)))


def test_what_is_no_leaf_is_left_alone() -> None:
    forward = Compiler(Inverted().eval(), IMAGE).forward
    program = forward.copy()
    assert form_regions(program) == 0
    assert Counter(c.op for c in program.calls if c.op != VIEW) == Counter(c.op for c in forward.calls if c.op != VIEW)


def test_a_leaf_that_needs_tiles_becomes_a_region_of_its_own() -> None:
    """Unformed calls whose kernels take panels or a few queries: the same numbers, and every gradient update in place."""
    model = vit()
    compiler = Compiler(model, IMAGE)
    plain = training_step(compiler, everything(model), False)
    wrapped = plain.copy()
    wrap_leaves(wrapped)
    verify(wrapped, "wrap")
    assert not {"attention", "attention_grad", "linear"} & {c.op for c in wrapped.calls if wrapped.tensors[
        next(iter(c.outputs.values()), wrapped.logits)].shape[0] > 1}
    image, _ = image_input(IMAGE)
    (losses, got), (want_losses, want) = (trained(compiler, p, image, 2) for p in (wrapped, plain))
    assert losses == want_losses
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])
    text = wrapped.to_json()
    assert from_json(text).to_json() == text


def test_equal_blocks_are_one_region_differentiated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve blocks: one region of an MLP, and a second for the last block, where one row is asked for."""
    made: list[Region] = []
    monkeypatch.setattr(relax_ops, "RULES_OF_REGIONS", {})
    monkeypatch.setattr(vjp, "RULES_OF_REGIONS", relax_ops.RULES_OF_REGIONS)
    once = vjp._differentiated
    monkeypatch.setattr(vjp, "_differentiated", lambda region: made.append(region) or once(region))
    model = vit(depth=12)
    plan: dict[str, Selection] = {n: "all" for n, _ in model.named_parameters() if "bias" in n or "norm" in n}
    program = training_step(Compiler(model, IMAGE), plan, True)
    mlps = Counter(c.op for c in program.calls if c.op in program.regions and "y" in c.outputs
                   and program.regions[c.op].definition.calls[2].op == "gelu")
    assert sorted(mlps.values()) == [1, 11]
    assert len(made) == len({r.name for r in made}) == len(relax_ops.RULES_OF_REGIONS)
    assert {c.where for c in program.calls if c.op in mlps} >= {f"blocks.{i}" for i in range(12)}


def test_partial_matrices_get_the_masked_gradient() -> None:
    model = vit()
    plan: dict[str, Selection] = {f"blocks.1.{n}.weight": {axis: [1, 4, 5, 20]} for n, axis in
                                  (("attn.qkv", "cols"), ("attn.proj", "rows"), ("mlp.fc1", "cols"), ("mlp.fc2", "rows"))}
    check(model, IMAGE, plan, *image_input(IMAGE))


def test_only_wanted_gradients_are_made() -> None:
    program = training_step(Compiler(vit(3), IMAGE), {"blocks.2.norm2.bias": "all"}, True)
    made = [c for c in program.calls if c.updates or any(s.startswith("d_") for s in c.outputs)]
    assert [set(c.outputs) for c in made if c.op in program.regions] == [set()]
    assert [c.updates for c in made if c.updates] == [{"beta": "blocks.2.norm2.bias"}]


@pytest.mark.parametrize(("widths", "want"), [
    ((8, 32, 8), ["linear relu linear"]),
    ((8, 32, 32, 8), ["linear relu linear relu linear"]),                       # nothing is taken in twice
    ((8, 32, 8, 32, 8), ["linear relu linear relu", "linear relu linear"]),
    ((8, 32, 16, 8), ["linear relu linear relu linear"]),
    ((32, 16, 8, 4), ["linear relu", "linear relu"]),
], ids=str)
def test_hidden_layers_are_inside(widths: tuple[int, ...], want: list[str]) -> None:
    model = Chain(*widths).eval()
    spec = InputSpec((6, widths[0]))
    program = Compiler(model, spec).forward.copy()
    assert form_regions(program) == len(want)
    assert [program.chain(c) for c in program.calls if c.op in program.regions] == want
    x = torch.randn(1, 6, widths[0])
    check(model, spec, everything(model), x.numpy(), x.double())


def test_chosen_regions_only() -> None:
    forward = Compiler(vit(3), IMAGE).forward
    program = forward.copy()
    count = form_regions(program, set())
    assert program.text() == forward.text() and count == len(candidates(forward))
    form_regions(program, {0})
    assert sum(c.op in program.regions for c in program.calls) == 1


NODES = st.lists(st.tuples(st.sampled_from(["linear", "norm", "gelu", "add"]), st.integers(0, 8), st.integers(0, 8)),
                 min_size=2, max_size=8)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(NODES, st.integers(0, 2 ** 16))
def test_random_graphs_with_fan_out(recipe: list[tuple[str, int, int]], seed: int) -> None:
    """Whatever a region is made of, its gradients are those of its calls; of a value used twice the sum of both."""
    torch.manual_seed(seed)
    model = FanOut(recipe, 6, 4).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    x = torch.randn(1, 3, 6)
    named = list(everything(model))
    chosen = [n for i, n in enumerate(named) if (seed >> (i % 16)) & 1] or named
    check(model, InputSpec((3, 6)), dict.fromkeys(chosen, "all"), x.numpy(), x.double())


PLANS: dict[str, dict[str, Selection]] = {
    "vectors": {f"blocks.{i}.{n}": "all" for i in range(3) for n in ("norm1.weight", "attn.qkv.bias", "mlp.fc1.bias")},
    "columns and rows": {"blocks.2.mlp.fc1.weight": {"cols": [1, 5, 7]}, "blocks.1.attn.qkv.weight": {"cols": [0, 3]},
                         "blocks.1.attn.proj.weight": {"rows": [0, 3]}, "blocks.1.mlp.fc2.weight": "all"},
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_every_budget_trains_alike(plan: dict[str, Selection]) -> None:
    """The whole compiler with regions, placed and judged, from the smallest step to the fastest, in float64."""
    model = vit(3)
    image, _ = image_input(IMAGE)
    losses, want = interpreted(Compiler(model, IMAGE).compile(plan, None, 0.5), image, 1, 0.1, 2, 0.5)
    compiler = Compiler(model, IMAGE)
    smallest = compiler.smallest_ram(plan, 0.5)
    work = []
    for budget in (smallest, smallest + 8000, None):
        compiled = compiler.compile(plan, budget, 0.5)
        assert budget is None or compiled.memory.total <= budget
        assert compiled.program.arena_bytes == compiled.bound
        work.append(compiled.macs)
        text = compiled.program.to_json()
        assert from_json(text, judge).to_json() == text
        got_losses, got = interpreted(compiled, image, 1, 0.1, 2, 0.5)
        np.testing.assert_allclose(got_losses, losses, rtol=1e-12)
        for name in want.keys() & got.keys():
            used = ~np.isnan(got[name])         # all but biases of keys
            assert used.all() or name == "blocks.2.attn.qkv.bias"
            np.testing.assert_allclose(got[name][used], want[name][used], rtol=0, atol=1e-12, err_msg=name)
    assert work == sorted(work, reverse=True)
