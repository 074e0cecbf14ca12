"""Evaluation on the cores there are: the same batches as one after the other, so the same predictions."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from torch import nn

from algorithm.data.dataset import Dataset
from algorithm.training.beside import Beside, GoOn
from algorithm.training.evaluation import Evaluation, evaluate


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def evaluate_on_cores(model: nn.Module, data: Dataset, batch: int = 16,
                      on_batch: Callable[[int], None] | None = None) -> Evaluation:
    """What `evaluate` gives. One thread a core (fewer where PyTorch itself uses several) takes every so manieth batch.

    Threads of our own rather than PyTorch's: those wait for each other after every operation, which costs more than it
    gains as soon as anything else runs.
    """
    batches = [np.arange(at, min(at + batch, len(data))) for at in range(0, len(data), batch)]
    workers = max(1, min(cores() // torch.get_num_threads(), len(batches)))
    done, lock = [0] * workers, threading.Lock()

    def evaluate_part(number: int, go_on: GoOn) -> Evaluation:
        def on_part(count: int) -> None:
            go_on()
            with lock:
                done[number] = count
                if on_batch:
                    on_batch(sum(done))
        return evaluate(model, data.take(np.concatenate(batches[number::workers])), batch, on_part)

    with ExitStack() as stack:
        running = [stack.enter_context(Beside(partial(evaluate_part, n))) for n in range(workers)]
        parts = [r.result() for r in running]
    predicted = np.empty(len(data), dtype=parts[0].predictions.dtype)
    for number, part in enumerate(parts):
        predicted[np.concatenate(batches[number::workers])] = part.predictions
    loss = sum(part.loss * part.count for part in parts) / len(data)
    return Evaluation(float((predicted == data.labels).mean()), loss, len(data), predicted)
