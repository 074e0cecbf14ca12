"""A recorded run that is given to the main job must be of its weights and of its plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from algorithm import build_model, record_trace, resolve_plan
from algorithm.config import load_run_config
from algorithm.errors import CheckpointError, ConfigError
from algorithm.models import ModelConfig
from algorithm.preflight import preflight
from algorithm.sparse import PlanConfig
from algorithm.training.trace import load_trace_of


def test_it_is_of_these_weights_and_this_plan(tmp_path: Path) -> None:
    model = build_model(ModelConfig(name="vit_tiny_patch16_224", img_size=16, patch_size=8, weights="none", num_classes=3,
                                    head_init="timm", gram={"enabled": False}, extra={"depth": 2, "embed_dim": 16,
                                                                                      "num_heads": 2}))
    plan = resolve_plan(PlanConfig(n_bias_update=1, n_weight_update=1, weight_update_ratio=0.25), model)
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    path = tmp_path / "t.safetensors"
    made = record_trace(model, plan, images, np.array([0, 1]), 0.01, path=path, device="cpu")
    assert np.array_equal(load_trace_of(path, model, plan).losses64, made.losses64)
    other = resolve_plan(PlanConfig(n_bias_update=1, n_weight_update=1, weight_update_ratio=0.5), model)
    with pytest.raises(CheckpointError, match=r"another update plan .'blocks\.1\.attn\.qkv\.weight' is trained otherwise"):
        load_trace_of(path, model, other)
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    with pytest.raises(CheckpointError, match=r"other weights .'head\.bias' differs.*--weights"):
        load_trace_of(path, model, plan)


def test_it_is_looked_for_before_work() -> None:
    with pytest.raises(ConfigError, match=r"no recorded run at nowhere\.safetensors"):
        preflight(load_run_config(["--trace", "nowhere.safetensors"]))
    with pytest.raises(ConfigError, match="trace_steps has no effect beside trace"):
        load_run_config(["--trace", "t.safetensors", "--trace_steps", "3"])
