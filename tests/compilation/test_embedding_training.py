"""Training what lies before the first block, and parameters under any name."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from compilation.capture import InputSpec
from compilation.pipeline import Compiler
from tests.compilation.in_c import trains_like_torch
from tests.compilation.models import IMAGE

SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3, "num_classes": 5}
EMBEDDINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "register tokens": ("vit_tiny_patch16_224", {"reg_tokens": 4}),
    "registers, no_embed_class": ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True, "global_pool": "avg"}),
    "no_embed_class": ("vit_tiny_patch16_224", {"no_embed_class": True}),
    "distillation token": ("deit_tiny_distilled_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "no class token": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "oblong patch": ("vit_tiny_patch16_224", {"patch_size": (4, 8)}),
    "odd size": ("vit_tiny_patch16_224", {"img_size": 18}),
}


@pytest.mark.parametrize(("kind", "tight"), [*((k, False) for k in EMBEDDINGS), ("distillation token", True)])
def test_the_embedding_trains_like_pytorch(kind: str, tight: bool) -> None:
    torch.manual_seed(1)
    name, options = EMBEDDINGS[kind]
    model = timm.create_model(name, **{**SMALL, **options}).eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.15)
    plan: dict[str, Any] = {n: "all" for n, _ in model.named_parameters()
                            if n.endswith(("_token", "pos_embed", "bias")) or n.startswith(("patch_embed", "head", "norm"))}
    assert {"patch_embed.proj.weight", "pos_embed"} <= plan.keys()
    spec = IMAGE if options.get("img_size", 16) == 16 else InputSpec.image((3, 18, 18), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    trains_like_torch(model, spec, plan, Compiler(model, spec).smallest_ram(dict(plan)) if tight else None)


class Reused(nn.Module):
    """The patches, and the patches with their prefix, are read again behind the position embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.patches, self.head = nn.Conv2d(3, 24, 4, 4), nn.Linear(24, 5)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 24)), nn.Parameter(torch.randn(1, 17, 24))
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token, patches], 1)
        return self.head((nn.functional.gelu(tokens + self.position) + tokens).mean(1) + patches.mean(1))


def test_tokens_that_are_read_twice_are_not_written_over() -> None:
    trains_like_torch(Reused(), IMAGE)


class Grid(nn.Module):
    """Patches that stay an image (1, C, H, W), as in a convolutional network: no token matrix is made of them."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.patches, self.head = nn.Conv2d(3, 8, 4, 4, bias=bias), nn.Linear(8, 5)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.patches(x)
        y = nn.functional.gelu(y) + self.depthwise(y[:, :, :, ::2]).repeat(1, 1, 1, 2) + y
        return self.head(y.mean((2, 3)))


@pytest.mark.parametrize("bias", [True, False])
def test_patches_may_stay_an_image(bias: bool) -> None:
    trains_like_torch(Grid(bias), IMAGE)


class LateBias(nn.Module):
    """A bias that is added to one view of a result, not to the result."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.head = nn.Linear(6, 6, bias=False), nn.Parameter(torch.randn(6)), nn.Linear(6, 4)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(x)
        return self.head((h.view(1, 1, 6) + self.b).view(1, 6) * 2 + h)


def test_a_bias_of_one_view_is_no_bias_of_the_other() -> None:
    trains_like_torch(LateBias(), InputSpec((6,)))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.randn(24)), nn.Parameter(torch.randn(24))
        self.view = nn.Parameter(torch.randn(24))


class Named(nn.Module):
    """Parameters under the names that the compiler itself gives to tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.image, self.patch_embed, self.fc = Scaled(), nn.Conv2d(3, 24, 4, 4), nn.Linear(24, 5)
        for name in ("label", "loss", "input", "logits", "constant", "add", "sgd"):
            setattr(self, name, nn.Parameter(torch.rand(24) + 0.5))
        self.scratch = nn.ParameterList([nn.Parameter(torch.randn(24)) for _ in range(8)])
        self.d = nn.ParameterList([nn.Parameter(torch.randn(24))])
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.patch_embed(x).flatten(2).transpose(1, 2) * self.image.scale + self.image.shift * self.image.view
        h = torch.tanh(h * self.label * self.loss + self.input * self.logits) * self.constant + self.add * self.sgd
        return self.fc((h + sum(self.scratch) + self.d[0]).mean(1))


@pytest.mark.parametrize("image", [True, False], ids=["image", "float"])
def test_parameters_may_have_any_name(image: bool) -> None:
    model = Named()
    compiled = trains_like_torch(model, IMAGE if image else InputSpec((3, 16, 16)))
    names = set(compiled.program.tensors)
    program = compiled.program
    assert {n for n, _ in model.named_parameters()} <= names
    assert not {program.image, program.label, program.loss, program.logits} & {n for n, _ in model.named_parameters()}
