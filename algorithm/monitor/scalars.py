"""The norms of an update: of its gradients, of the change, of the values that it changed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from algorithm.monitor.observer import Observer, Scene, Values, trained_leaves


class Norms(Observer):
    """`Optim/{grad,update,param}_global_norm`: L2, over all trained values together; gradients as the optimiser gets them.

    Of a model that is trained in part it is the trained part. For the change, the trained values are copied before an
    update that is due.
    """

    def __init__(self, scene: Scene, every: int) -> None:
        self.scene, self.every = scene, every
        self._grad: Tensor | None = None

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        grads = [g for leaf in trained_leaves(self.scene.model).values() if (g := leaf.trained.grad) is not None]
        self._grad = get_total_norm(grads)
        self.scene.remember()

    @torch.no_grad()
    def after_step(self, step: int) -> Values:
        grad, self._grad = self._grad, None
        if grad is None:  # its measurement failed
            return {}
        values = {"Optim/grad_global_norm": grad,
                  "Optim/update_global_norm": get_total_norm(list(self.scene.updates().values())),
                  "Optim/param_global_norm": get_total_norm(
                      [leaf.trained.detach() for leaf in trained_leaves(self.scene.model).values()])}
        return dict(zip(values, torch.stack([v.float() for v in values.values()]).tolist(), strict=True))
