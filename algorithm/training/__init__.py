"""Training as the device does it, evaluation, and traces of both for the C to be held against."""

from __future__ import annotations

from algorithm.training.checkpoint import read_safetensors, save_model, write_safetensors
from algorithm.training.config import TrainConfig
from algorithm.training.evaluation import Evaluation, evaluate
from algorithm.training.loop import TrainResult, finetune, image_order
from algorithm.training.progress import progress
from algorithm.training.trace import Trace, record_trace, run_steps

__all__ = ["Evaluation", "Trace", "TrainConfig", "TrainResult", "evaluate", "finetune", "image_order", "progress",
           "read_safetensors", "record_trace", "run_steps", "save_model", "write_safetensors"]
