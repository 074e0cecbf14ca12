"""Every variant of the models and form of the Gram residual goes through the compiler, and is proven in the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from algorithm import build_model, record_trace, resolve_plan
from algorithm.models import ModelConfig
from algorithm.models.vit import input_scale_shift
from algorithm.sparse.config import PlanConfig
from compilation.capture import InputSpec
from compilation.pipeline import Compiler
from runtime.codegen import generate
from runtime.simulator import Simulator
from runtime.toolchain import Build
from runtime.validate import replay

SMALL: dict[str, Any] = {"name": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 8, "num_classes": 3,
                         "weights": "none", "head_init": "timm", "extra": {"depth": 2, "embed_dim": 24, "num_heads": 3}}
CASES: dict[str, tuple[str, str, dict[str, Any], bool]] = {     # name -> (variant, form, rule, at the smallest budget)
    "registers, token form: bias+LN": ("register", "token", {"n_bias_update": "all"}, False),
    "registers, head form: Gram": ("register", "head", {"n_bias_update": 0, "n_gram_update": 1}, False),
    "gated, token form: gate": ("gated", "token", {"n_bias_update": 0, "n_gate_update": 1}, False),
    "gated, token form: bias+LN": ("gated", "token", {"n_bias_update": "all"}, True),
    "gated, head form: all": ("gated", "head", {"enable_backward_config": False}, False),
    "vanilla, head form: attention columns": (
        "vanilla", "head", {"n_bias_update": 0, "n_weight_update": 1, "vit_layer_types": ["attention", "head"],
                            "weight_update_ratio": 0.5}, True)}


@pytest.mark.parametrize("name", CASES)
def test_variants_and_forms_are_proven_in_c(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    variant, form, rule, tight = CASES[name]
    model = build_model(ModelConfig(**SMALL, variant=variant, gram={"enabled": True, "form": form, "rank": 4}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():                          # additions that do something
        for parameter, value in model.named_parameters():
            if parameter.endswith(("gram_b", "gate_w", "gate_b")):
                value.normal_(std=0.2, generator=generator)
    plan = resolve_plan(PlanConfig(**rule), model)
    selections = dict(plan.to_dict()["parameters"])
    compiler = Compiler(model, InputSpec((3, 16, 16), *input_scale_shift(model)), "small")
    compiled = compiler.compile(selections, compiler.smallest_ram(selections) if tight else None)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8), rng.integers(0, 3, 4)
    trace = record_trace(model, plan, images, labels, 0.05, 0.0)
    generate(compiled.program, compiled.values, tmp_path / "c")
    with Simulator(tmp_path / "c", compiled.program, Build(optimise="-O1")) as simulator:
        measured = simulator.measure(trace.images[0], int(trace.labels[0]), 0.05)
        check = replay(simulator, trace)
    check.require()
    assert check.resolved == len(check.tensors) == len(plan.parameters)
    assert measured.ram_bytes == compiled.memory.total and measured.macs == compiled.macs
