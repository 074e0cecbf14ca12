"""Model, data, update plan and training on the PyTorch side. Imports no compiler.

The names below are loaded on first use, so that torch-free parts (`algorithm.sparse.plan`) stay cheap to import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from algorithm.lazy import loader

if TYPE_CHECKING:
    from algorithm.config import RunConfig, load_run_config
    from algorithm.data import load_data
    from algorithm.models import ModelConfig, build_model
    from algorithm.sparse import UpdatePlan, choose_plan, resolve_plan
    from algorithm.training import evaluate, finetune, record_trace

__getattr__ = loader(__name__, {
    "config": ("RunConfig", "load_run_config"), "data": ("load_data",), "models": ("ModelConfig", "build_model"),
    "sparse": ("UpdatePlan", "choose_plan", "resolve_plan"),
    "training": ("evaluate", "finetune", "record_trace")})
__all__ = ["ModelConfig", "RunConfig", "UpdatePlan", "build_model", "choose_plan", "evaluate", "finetune", "load_data",
           "load_run_config", "record_trace", "resolve_plan"]
