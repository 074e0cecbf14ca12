"""Dynamic sparsity: every k updates the trained columns (rows) of the plan's matrices are chosen anew, as many as before.

In the line of RigL (Evci et al. 2020), on whole columns and with frozen instead of zero weights outside. The criterion
"gradient" is the sum, over the micro-batches since the last choice, of the squared norm of a column's gradient; columns
that are not trained are measured, too, which costs the whole weight gradient of those matrices (the static plan computes
the slice alone). Every process chooses alike.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from algorithm.errors import PlanError
from algorithm.recipes.config import DynamicConfig
from algorithm.recipes.distributed import World
from algorithm.sparse.apply import AppliedPlan


class Dynamic:
    """Chooses on `after_update`. Only where `config.every` is given. total: updates of the whole training."""

    def __init__(self, config: DynamicConfig, applied: AppliedPlan, world: World, seed: int, total: int) -> None:
        """Raises PlanError where the plan has no sliced matrix."""
        if not applied.sliced:
            raise PlanError("recipe.dynamic.every chooses trained columns anew, but the plan slices no matrix: set "
                            "plan.weight_update_ratio between 0 and 1, or leave recipe.dynamic out")
        self.config, self.applied, self.world, self.seed = config, applied, world, seed
        self.last = int(config.until * total)
        self.scores: dict[str, Tensor] = {}
        if config.criterion == "gradient":
            for name, linear in applied.sliced.items():
                size = linear.weight.shape[1 if linear.plan_cols else 0]
                linear.plan_score = torch.zeros(size, device=linear.weight.device, requires_grad=True)
                self.scores[name] = torch.zeros(size, device=linear.weight.device)

    def due(self, update: int) -> bool:
        """Whether a choice follows on an update (0-based)."""
        return (update + 1) % (self.config.every or 0) == 0 and update + 1 <= self.last

    @torch.no_grad()
    def after_update(self, update: int, optimizer: Optimizer, scale: float = 1.0) -> int:
        """Gather the gradients' norms, and choose where it is due; returns how many columns and rows changed.

        scale: what the loss was multiplied with (the gradient scaler's factor over the accumulated passes).
        """
        for name, total in self.scores.items():
            leaf = self.applied.sliced[name].plan_score
            if leaf is not None and leaf.grad is not None:
                norms = leaf.grad / scale ** 2
                total += torch.where(norms.isfinite(), norms, 0.0)  # an update that the scaler skips counts nothing
                leaf.grad = None
            if update + 1 >= self.last:
                self.applied.sliced[name].plan_score = None         # nothing is chosen any more: the slice alone again
        return self._choose(update, optimizer) if self.due(update) else 0

    def _choose(self, update: int, optimizer: Optimizer) -> int:
        self.gather()
        changed = 0
        for name, linear in self.applied.sliced.items():
            old: list[int] = linear.plan_index.tolist()
            new = self._best(name, linear, update, len(old))
            if new == old:
                continue
            changed += len(set(new) - set(old))
            self.applied.choose(name, new)
            leaf = self.applied.leaves[name]
            for key, value in optimizer.state.get(leaf, {}).items():
                if isinstance(value, Tensor) and value.shape == leaf.shape and value.numel() > 1:
                    optimizer.state[leaf][key].copy_(moved(value, old, new, 1 if linear.plan_cols else 0))
        for total in self.scores.values():
            total.zero_()
        return changed

    def _best(self, name: str, linear: Any, update: int, count: int) -> list[int]:
        """The indices that the criterion wants, ascending; process 0's on every one."""
        weight = linear.weight
        dim = 0 if linear.plan_cols else 1
        criterion = self.config.criterion
        if criterion == "gradient":
            worth = self.scores[name].double().cpu()
        elif criterion == "random":
            words = hashlib.sha256(f"{self.seed} {update} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(words[:8], "little") >> 1)
            worth = torch.rand(weight.shape[1 - dim], generator=generator, dtype=torch.float64)
        else:
            worth = weight.detach().cpu().double().norm(dim=dim)
        order = torch.argsort(worth, descending=criterion != "magnitude-", stable=True)
        best = order[:count].sort().values.to(weight.device)
        return [int(i) for i in self.world.same(best)]

    def gather(self) -> None:
        """Add the scores up over all processes: process 0 keeps the sums, the others go on from zero."""
        for total in self.scores.values():
            self.world.sum(total)
            if not self.world.first:
                total.zero_()

    def state(self) -> dict[str, Tensor]:
        """What has been measured since the last choice, after `gather()`."""
        return {name: total.detach().clone() for name, total in self.scores.items()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor], update: int) -> None:
        """Go on before an update, in process 0 with the sums. The plan itself was applied as it was."""
        for name, total in self.scores.items():
            if self.world.first:
                total.copy_(state[name])
            if update >= self.last:
                self.applied.sliced[name].plan_score = None


def moved(state: Tensor, old: list[int], new: list[int], dim: int) -> Tensor:
    """An optimiser's state along `dim` for other columns (rows): what stays is kept, what is new is zero."""
    place = {index: i for i, index in enumerate(old)}
    out = torch.zeros_like(state)
    stays = [(i, place[index]) for i, index in enumerate(new) if index in place]
    if stays:
        to, come = (torch.tensor(v, device=state.device) for v in zip(*stays, strict=True))
        out.index_copy_(dim, to, state.index_select(dim, come))
    return out
