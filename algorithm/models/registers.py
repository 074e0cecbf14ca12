"""Register tokens, "Vision Transformers Need Registers" (Darcet et al. 2023): timm's own, in any ViT that takes them.

timm concatenates class token, registers and patches, and gives all of them a position unless `no_embed_class`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from algorithm.errors import ModelError, WeightsError
from algorithm.models.config import REGISTERS, ModelConfig
from algorithm.models.torchvision_shim import timm

ARGUMENTS = ("reg_tokens", "num_reg_tokens")    # timm's names of the argument, by family
FOREIGN = ("register_tokens", "storage_tokens", "reg_token")    # registers of a checkpoint, under whatever name


def create_with_registers(name: str, config: ModelConfig, wanted: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """timm's model `name` with the registers of the configuration, and the arguments it was made with.

    Raises ModelError where it takes none, and timm's own errors for the other arguments.
    """
    count = REGISTERS if config.registers is None else config.registers
    for argument in ARGUMENTS:
        try:
            arguments = {**wanted, argument: count}
            model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
        except TypeError as error:
            if f"'{argument}'" in str(error):
                continue
            raise
        token = getattr(model, "reg_token", None)
        others = sum(isinstance(getattr(model, n, None), Tensor) for n in ("cls_token", "dist_token"))
        if isinstance(token, Tensor) and model.num_prefix_tokens == others + token.shape[1]:  # and its forward uses them
            return model, arguments
    raise ModelError(f"{config.name!r} takes no register tokens: set model.variant=vanilla, or take a plain vision "
                     "transformer")


def match_registers(state: dict[str, Tensor], model: nn.Module, source: str) -> dict[str, Tensor]:
    """A checkpoint's state for a model with or without registers.

    Weights without registers, for the variant `register`: the registers stay as they are, and so do those entries of the
    position embedding that are theirs (zeros). Raises WeightsError where the file has registers that the model lacks, or
    another number.
    """
    own: Tensor | None = getattr(model, "reg_token", None)
    count = 0 if own is None else own.shape[1]
    found = state["reg_token"].shape[1] if state.get("reg_token") is not None and state["reg_token"].ndim == 3 else 0
    if found and found != count:
        raise WeightsError(f"weights {source} have {found} register tokens, the model has {count or 'none'}: set "
                           f"model.variant=register model.registers={found}")
    config = getattr(model, "vit_config", None)
    if own is None or config is None or config.variant != "register" or any(k in state for k in FOREIGN):
        return state
    state = {**state, "reg_token": own.detach().clone()}
    position = state.get("pos_embed")
    if position is not None and position.ndim == 3 and not getattr(model, "no_embed_class", False):
        before = int(model.num_prefix_tokens) - count  # type: ignore[arg-type]
        gap = torch.zeros(1, count, position.shape[-1], dtype=position.dtype)
        state["pos_embed"] = torch.cat([position[:, :before], gap, position[:, before:]], 1)
    return state
