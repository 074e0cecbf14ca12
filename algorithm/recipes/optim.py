"""Any optimiser of timm by name, over exactly the trained parts of an applied plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from algorithm.errors import ConfigError
from algorithm.models.torchvision_shim import timm
from algorithm.recipes.config import OptimConfig
from algorithm.recipes.names import LOOKAHEAD
from algorithm.recipes.state import pack
from algorithm.schema import one_line


def learning_rate(config: OptimConfig, global_batch: int) -> float:
    """`lr`, or `base_lr` scaled with the images of an update (linear: Goyal et al. 2017; sqrt: Krizhevsky 2014)."""
    if config.lr is not None:
        return config.lr
    ratio = global_batch / config.lr_base_size
    return config.base_lr * (ratio if config.lr_base_scale == "linear" else math.sqrt(ratio))


def make_optimizer(model: nn.Module, config: OptimConfig, global_batch: int, extra: dict[str, Any]) -> Optimizer:
    """timm's `create_optimizer_v2` over the parameters of `model` that require a gradient, in timm's groups: no weight
    decay on biases, norms and what the model excludes; learning rate factors by layer with `layer_decay`.

    extra: further arguments of the optimiser. Raises ConfigError where timm cannot make it so.
    """
    info = timm.optim.get_optimizer_info(config.opt.lower().removeprefix(LOOKAHEAD))
    for name, has, given in (("opt_betas", info.has_betas, config.opt_betas), ("opt_eps", info.has_eps, config.opt_eps),
                             ("momentum", info.has_momentum, config.changed("momentum"))):
        if given and not has:
            raise ConfigError(f"recipe.optim.{name} has no effect: {config.opt} has none; leave it out")
    given_too: dict[str, Any] = dict(extra)
    if config.opt_betas is not None:
        given_too["betas"] = tuple(config.opt_betas)
    if config.opt_eps is not None:
        given_too["eps"] = config.opt_eps
    try:
        return timm.optim.create_optimizer_v2(
            model, opt=config.opt, lr=learning_rate(config, global_batch), weight_decay=config.weight_decay,
            momentum=config.momentum, layer_decay=config.layer_decay, **given_too)
    except Exception as error:  # timm, torch and missing packages raise many classes
        raise ConfigError(f"timm cannot make the optimiser {config.opt} with these arguments: {one_line(error)}") from None


def is_second_order(optimizer: Optimizer) -> bool:
    """Whether it differentiates the gradients once more (adahessian)."""
    return bool(getattr(optimizer, "is_second_order", False))


Make = Callable[[nn.Module], Optimizer]


def check_state(make: Make, name: str, dynamic: bool) -> None:
    """Try an optimiser on a small matrix: can its state be written to a checkpoint, and, where the trained columns
    change (`dynamic`), is it one number an element that starts as zero? Raises ConfigError.
    """
    model = nn.Module()
    model.weight = nn.Parameter(torch.arange(1.0, 16.0).view(5, 3) / 16)
    optimizer = make(model)
    if dynamic and (is_second_order(optimizer) or name.lower().startswith(LOOKAHEAD)):
        raise ConfigError(f"the optimiser {name} cannot follow recipe.dynamic: take another (adamw, lamb, sgd)")
    loss = model.weight.square().sum() * 0.0
    loss.backward(create_graph=is_second_order(optimizer))
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0     # so that the gradient is zero whatever the optimiser adds to it
    with suppress(ZeroDivisionError):
        optimizer.step()
    try:
        pack(optimizer.state_dict(), "")
    except TypeError as error:
        raise ConfigError(f"the state of the optimiser {name} cannot be written to a checkpoint ({error}): take another"
                          ) from None
    if not dynamic:
        return
    for key, value in optimizer.state[model.weight].items():
        plain = isinstance(value, (int, float)) or (isinstance(value, torch.Tensor) and value.numel() == 1)
        fits = isinstance(value, torch.Tensor) and value.shape == model.weight.shape and not bool(value.any())
        if not plain and not fits:
            raise ConfigError(f"recipe.dynamic gives new columns a state of zeros, which the optimiser {name} cannot have "
                              f"(its {key!r}): take another (adamw, lamb, sgd)")
