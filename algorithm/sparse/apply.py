"""Apply an update plan in PyTorch: frozen parts cost nothing, a partial weight gets exactly the masked gradient.

A sliced matrix keeps its whole weight, frozen; its trained slice is a parameter of its own (`plan_part`, beside
`weight`), and the backward computes the slice's gradient only (dW[:, cols] = dY^T X[:, cols]), from the saved slice of
the input only. So whatever walks over `named_parameters()` sees exactly the trained parts: an optimiser of any kind with
its weight decay and trust ratios, clipping, DistributedDataParallel. The forward reads the whole weight, so that deep
copies (a moving average), autocast and torch.compile need nothing special.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from algorithm.errors import PlanError
from algorithm.models.additions import idle_additions
from algorithm.models.lora import LoraLinear
from algorithm.sparse.plan import Slice, UpdatePlan
from algorithm.sparse.resolve import check_plan


class _SlicedLinearFunction(torch.autograd.Function):
    """y = x W^T + b, with a gradient for a slice of W given as a leaf of its own.

    score: None, or a leaf that gets, as its gradient, the squared norm of dW of every column (row), trained or not.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, part: Tensor, index: Tensor,
                cols: bool, score: Tensor | None) -> Tensor:
        ctx.cols, ctx.scored = cols, score is not None
        whole = ctx.scored or not cols
        ctx.save_for_backward(x if whole else x[..., index], weight, index)  # of X only the columns that are needed
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, index = ctx.saved_tensors
        needs = ctx.needs_input_grad
        dx = dy @ weight if needs[0] else None
        flat = dy.reshape(-1, dy.shape[-1])
        db = flat.sum(0) if needs[2] else None
        if ctx.scored:
            whole = flat.T @ x.reshape(-1, x.shape[-1])
            part = whole.index_select(1 if ctx.cols else 0, index)
            return dx, None, db, part, None, None, whole.float().square().sum(0 if ctx.cols else 1)
        chosen = flat if ctx.cols else flat[:, index]
        return dx, None, db, chosen.T @ x.reshape(-1, x.shape[-1]), None, None, None


class _SlicedMixin:
    """Routes the base product of a linear through `_SlicedLinearFunction`."""

    plan_score: Tensor | None = None

    def base(self: Any, input: Tensor) -> Tensor:
        given: tuple[Tensor, Tensor, Tensor | None, Tensor] = input, self.weight, self.bias, self.plan_part
        kind = input.device.type
        if torch.is_autocast_enabled(kind):  # as autocast would for F.linear: the backward then has one type, too
            dtype = torch.get_autocast_dtype(kind)
            x, weight, bias, part = (None if t is None else t.to(dtype) for t in given)
        else:
            x, weight, bias, part = given
        result: Tensor = _SlicedLinearFunction.apply(x, weight, bias, part, self.plan_index, self.plan_cols,
                                                     self.plan_score)
        return result


class _SlicedLinear(_SlicedMixin, nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return self.base(input)


class _SlicedLoraLinear(_SlicedMixin, LoraLinear):
    pass


class AppliedPlan:
    """A plan in force on a model. `leaves`: parameter name -> the parameter to update (whole, or the slice); the names
    are those of the whole parameters.

    `idle`: Gram residuals and LoRA that are zeros and stay so under the plan; the forward pass skips them.
    Use as a context manager; on leaving, the modules are what they were, the trained values stay in the weights.
    After changing the leaves, call `sync()`: it writes the slices into their weights.
    """

    def __init__(self, model: nn.Module, plan: UpdatePlan) -> None:
        check_plan(plan, model)
        self.model, self.plan = model, plan
        self.leaves: dict[str, Tensor] = {}
        self._required = {n: p.requires_grad for n, p in model.named_parameters()}
        self._sliced: dict[str, tuple[Any, type]] = {}  # by parameter: its module, and what class that was
        self._closing = ExitStack()
        self.idle = self._closing.enter_context(idle_additions(model, plan.parameters))
        for name, parameter in list(model.named_parameters()):
            choice = plan.parameters.get(name)
            parameter.requires_grad_(choice == "all")
            parameter.grad = None
            if choice == "all":
                self.leaves[name] = parameter
            elif isinstance(choice, Slice):
                self.leaves[name] = self._slice(name, parameter, choice)

    def _slice(self, name: str, parameter: Tensor, choice: Slice) -> Tensor:
        owner: Any = self.model.get_submodule(name.rpartition(".")[0])
        kind = _SlicedLoraLinear if type(owner) is LoraLinear else _SlicedLinear
        index = torch.tensor(choice.index, dtype=torch.long, device=parameter.device)
        part = nn.Parameter(parameter.detach().index_select(1 if choice.axis == "cols" else 0, index))
        self._sliced[name] = owner, type(owner)
        owner.plan_part, owner.plan_cols = part, choice.axis == "cols"
        owner.register_buffer("plan_index", index, persistent=False)
        owner.__class__ = kind
        return part

    @torch.no_grad()
    def sync(self) -> None:
        """Write the trained slices into their weights."""
        for owner, _ in self._sliced.values():
            owner.weight.index_copy_(1 if owner.plan_cols else 0, owner.plan_index, owner.plan_part)

    @torch.no_grad()
    def read(self) -> None:
        """The inverse of `sync`, for weights that were changed from outside."""
        for owner, _ in self._sliced.values():
            owner.plan_part.copy_(owner.weight.index_select(1 if owner.plan_cols else 0, owner.plan_index))

    @torch.no_grad()
    def choose(self, name: str, index: Sequence[int]) -> None:
        """Train other columns (rows) of a sliced matrix, as many as before; the plan changes with it. In place: the
        leaf stays the same tensor, so that optimisers and wrappers of the model need not know. Raises PlanError.
        """
        owner, choice = self._sliced[name][0], self.plan.parameters[name]
        if not isinstance(choice, Slice) or len(index) != len(choice.index):
            raise PlanError(f"plan of {name!r}: its {len(owner.plan_index)} trained parts cannot become {len(index)}")
        parameters = {**self.plan.parameters, name: Slice(choice.axis, tuple(index))}
        plan = UpdatePlan(parameters, self.plan.name, self.plan.gram_rank)
        UpdatePlan({name: plan.parameters[name]}).check({name: tuple(owner.weight.shape)})
        self.sync()
        self.plan = plan
        owner.plan_index.copy_(torch.tensor(index, dtype=torch.long))
        self.read()

    @property
    def sliced(self) -> dict[str, Any]:
        """Parameter name -> the linear whose weight it is, of the sliced ones."""
        return {name: owner for name, (owner, _) in self._sliced.items()}

    def close(self) -> None:
        """Take the plan off the model again."""
        self.sync()
        for owner, kind in self._sliced.values():
            owner.__class__ = kind
            for attribute in ("plan_part", "plan_index", "plan_cols"):
                delattr(owner, attribute)
            owner.__dict__.pop("plan_score", None)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._required[name])
            parameter.grad = None
        self._closing.close()
        self._sliced, self.leaves, self.idle = {}, {}, []

    def __enter__(self) -> AppliedPlan:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def lowest_trained_block(model: nn.Module, plan: UpdatePlan) -> int:
    """The first block that needs a gradient; depth when only the head or the final norm does; -1 when the embedding
    does (then nothing is frozen below)."""
    depth = len(model.blocks)  # type: ignore[arg-type]
    lowest = depth
    for name in plan.parameters:
        parts = name.split(".")
        if parts[0] == "blocks":
            lowest = min(lowest, int(parts[1]))
        elif parts[0] not in ("norm", "fc_norm", "head"):
            return -1
    return lowest
