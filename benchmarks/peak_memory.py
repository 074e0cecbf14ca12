"""How much memory PyTorch itself takes for a training step."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from algorithm import UpdatePlan
from algorithm.models import images_to_input, input_scale_shift
from algorithm.sparse import AppliedPlan


class PeakMemory(TorchDispatchMode):
    """Most bytes of tensors that PyTorch held at once, made while the mode is on (weights excluded)."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in known and key not in self.seen:
                    self.seen.add(key)
                    self.live += size
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._freed, key, size)
        return out

    def _freed(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def torch_peak(model: torch.nn.Module, plan: UpdatePlan, image: np.ndarray) -> int:
    """PyTorch's own peak for the same step, bytes beyond the weights: activations, gradients, saved tensors."""
    scale, shift = input_scale_shift(model)
    with AppliedPlan(model, plan) as applied:
        x = images_to_input(image[None], scale, shift)
        gc.collect()
        with PeakMemory() as mode:
            loss = torch.nn.functional.cross_entropy(model(x), torch.tensor([1]))
            torch.autograd.grad(loss, list(applied.leaves.values()), allow_unused=True)
        return mode.peak
