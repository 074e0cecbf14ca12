"""Training as the device does it, evaluation, and traces of both for the C to be held against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from algorithm.lazy import loader
from algorithm.training.config import TrainConfig

if TYPE_CHECKING:
    from algorithm.training.checkpoint import export_timm, read_safetensors, save_model, write_safetensors
    from algorithm.training.evaluation import Evaluation, evaluate
    from algorithm.training.loop import TrainResult, finetune, image_order
    from algorithm.training.trace import Trace, record_trace, run_steps

__getattr__ = loader(__name__, {
    "checkpoint": ("export_timm", "read_safetensors", "save_model", "write_safetensors"),
    "evaluation": ("Evaluation", "evaluate"),
    "loop": ("TrainResult", "finetune", "image_order"), "trace": ("Trace", "record_trace", "run_steps")})
__all__ = ["Evaluation", "Trace", "TrainConfig", "TrainResult", "evaluate", "export_timm", "finetune", "image_order",
           "read_safetensors", "record_trace", "run_steps", "save_model", "write_safetensors"]
