"""Small models with plans, one for each way to train, and how a recorded run of one is compiled and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from algorithm import UpdatePlan, build_model, record_trace, resolve_plan
from algorithm.models import ModelConfig
from algorithm.models.vit import input_scale_shift
from algorithm.sparse.config import PlanConfig
from algorithm.training.trace import Trace
from compilation.capture import InputSpec
from compilation.pipeline import Compiled, Compiler
from runtime.codegen.generate import generate
from runtime.simulator import Simulator
from runtime.validate import replay
from runtime.verdict import Validation

SIZE, CLASSES, LR = 32, 5, 0.01
WIDTH, DEPTH, HEADS = 48, 3, 3
LORA = {"enabled": True, "rank": 4, "alpha": 6.0, "targets": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]}


@dataclass(frozen=True)
class Case:
    """A model (changes to the small ViT), a plan rule, and how much memory the step gets."""

    name: str
    plan: Mapping[str, Any]
    model: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    smallest: bool = True       # the least memory: everything streamed and recomputed; else: everything kept


FROZEN = {"n_bias_update": 0, "bias": False, "layer_norm": False, "vit_layer_types": []}
CASES = [
    Case("full", {"enable_backward_config": False}),
    Case("full, kept", {"enable_backward_config": False}, smallest=False),
    Case("bias+LN", {"n_bias_update": "all"}),
    Case("bias+LN, kept", {"n_bias_update": "all"}, smallest=False),
    Case("columns", {**FROZEN, "n_weight_update": "all", "vit_layer_types": ["attention", "mlp"],
                     "weight_update_ratio": 0.25}),
    Case("rows", {**FROZEN, "n_weight_update": "all", "vit_layer_types": ["attention", "mlp"], "weight_update_ratio": 0.25,
                  "weight_select_axis": "rows"}),
    Case("columns, kept", {**FROZEN, "n_weight_update": "all", "vit_layer_types": ["attention", "mlp"],
                           "weight_update_ratio": 0.25}, smallest=False),
    Case("Gram", {**FROZEN, "n_gram_update": "all"}, {"gram": {"enabled": True, "rank": 8}}),
    Case("LoRA", {**FROZEN, "n_lora_update": "all"}, {"lora": LORA}),
    Case("head", {"n_bias_update": 0}),
    Case("average pooling", {"n_bias_update": "all", "n_weight_update": 1}, {"pool": "avg"}),
    Case("register tokens", {"n_bias_update": 2}, extra={"reg_tokens": 2}),
]
BY_NAME = {case.name: case for case in CASES}


def make_model(case: Case) -> tuple[nn.Module, UpdatePlan]:
    """The case's model, with a Gram residual and LoRA that do something, and its plan."""
    extra = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, **case.extra}
    options: dict[str, Any] = {"name": "vit_tiny_patch16_224", "img_size": SIZE, "patch_size": 8, "num_classes": CLASSES,
                               "weights": "none", "head_init": "timm", "gram": {"enabled": False}, "extra": extra}
    model = build_model(ModelConfig(**{**options, **case.model}))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("gram_b", "lora_b")):
                p.normal_(std=0.05, generator=torch.Generator().manual_seed(3))
    return model, resolve_plan(PlanConfig(**case.plan), model)


def compile_case(case: Case, model: nn.Module, plan: UpdatePlan, momentum: float, folder: Path) -> Compiled:
    """Compile, and write the C code into `folder`/c."""
    scale, shift = input_scale_shift(model)
    compiler = Compiler(model, InputSpec((3, SIZE, SIZE), scale, shift), "case")
    selections = dict(plan.to_dict()["parameters"])
    budget = compiler.smallest_ram(selections, momentum) if case.smallest else None
    compiled = compiler.compile(selections, budget, momentum)
    folder.mkdir(parents=True, exist_ok=True)
    generate(compiled.program, compiled.values, folder / "c")
    return compiled


def record(model: nn.Module, plan: UpdatePlan, steps: int, momentum: float, seed: int) -> Trace:
    """A recorded run on random images and labels; for seeds above 0 from other values of what is trained."""
    rng = np.random.default_rng(seed)
    named = dict(model.named_parameters())
    before = {n: named[n].detach().clone() for n in plan.parameters}
    images = rng.integers(0, 256, (steps, SIZE, SIZE, 3), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, steps)
    with torch.no_grad():
        for name in plan.parameters if seed else ():
            noise = torch.from_numpy(rng.normal(0, 0.02, tuple(named[name].shape)).astype(np.float32))
            named[name].add_(noise * _trained_mask(plan, name, named[name]))
    try:
        return record_trace(model, plan, images, labels, LR, momentum, device="cpu")
    finally:
        with torch.no_grad():
            for name, value in before.items():
                named[name].copy_(value)


def _trained_mask(plan: UpdatePlan, name: str, parameter: torch.Tensor) -> torch.Tensor:
    """1 where the plan trains: only that part may differ from what was compiled."""
    choice = plan.parameters[name]
    if choice == "all":
        return torch.ones_like(parameter)
    mask = torch.zeros_like(parameter)
    mask[(slice(None), list(choice.index)) if choice.axis == "cols" else (list(choice.index), slice(None))] = 1
    return mask


def replay_in(folder: Path, compiled_program: Any, trace: Trace) -> Validation:
    """Build `folder`/c and replay a trace once."""
    with Simulator(folder / "c", compiled_program) as simulator:
        return replay(simulator, trace)
