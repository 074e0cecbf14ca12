"""The Gram residual and LoRA as additions to a built ViT: where they go, what a checkpoint has of them, when they idle."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from algorithm.errors import ModelError, WeightsError
from algorithm.models.config import ModelConfig
from algorithm.models.gram import GramMixin, add_gram
from algorithm.models.lora import LoraLinear, add_lora
from algorithm.schema import nearest

ADDITIONS = ("gram_a", "gram_b", "lora_a", "lora_b")


def add_residuals(model: nn.Module, config: ModelConfig, tokens: int) -> None:
    """Give the model the Gram residuals and LoRA of its configuration, in place; both start as no-ops.

    tokens: N, what an attention sees. Raises ModelError for a block, target or rank that the model does not have.
    """
    blocks: nn.Sequential = model.blocks  # type: ignore[assignment]
    for option in (config.gram, config.lora):
        bad = [i for i in option.blocks or [] if not 0 <= i < len(blocks)]
        if bad:
            raise ModelError(f"block {bad[0]} does not exist: the model has blocks 0 to {len(blocks) - 1}")
    if config.gram.enabled:
        generator = torch.Generator().manual_seed(config.seed + 1)
        for i, block in enumerate(blocks):
            if config.gram.blocks is None or i in config.gram.blocks:
                add_gram(block.attn, tokens, int(model.embed_dim),  # type: ignore[arg-type]
                         config.gram.rank, config.gram.std, generator)
    if config.lora.enabled:
        generator = torch.Generator().manual_seed(config.seed + 2)
        for target in config.lora.targets:
            _add_lora_at(model, target, config, generator)


def _add_lora_at(model: nn.Module, target: str, config: ModelConfig, generator: torch.Generator) -> None:
    found = [(n, m) for n, m in model.named_modules()
             if _is_target(n, target, config.lora.blocks) and isinstance(m, nn.Linear)]
    if not found:
        names = sorted({n.split(".", 2)[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(f"LoRA target {target!r} names no linear of the model{nearest(target, names)}")
    for name, linear in found:
        if isinstance(linear, LoraLinear):
            raise ModelError(f"LoRA target {target!r} names {name!r}, which another target names already")
        side = min(linear.in_features, linear.out_features)
        if config.lora.rank > side:
            raise ModelError(f"model.lora.rank={config.lora.rank} is more than the smaller side of {name!r}, {side}: "
                             "lower it, or leave the layer out of model.lora.targets")
        add_lora(linear, config.lora.rank, config.lora.alpha, generator)


def _is_target(name: str, target: str, blocks: list[int] | None) -> bool:
    if name != target and not name.endswith("." + target):
        return False
    parts = name.split(".")
    return blocks is None or parts[0] != "blocks" or int(parts[1]) in blocks


def match_additions(state: dict[str, Tensor], own: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """A checkpoint's state without the additions that the model lacks, where they are no-ops (their B is all zeros).

    Raises WeightsError, with the options to set, for an addition that does something and has no place in the model.
    """
    out = dict(state)
    for stem in dict.fromkeys(k[:-1] for k in state if k.endswith(ADDITIONS)):
        a, b = (state.get(stem + part) for part in "ab")
        if a is None or b is None:
            raise WeightsError(f"weights {source}: {stem}{'a' if a is None else 'b'} is missing beside "
                               f"{stem}{'b' if a is None else 'a'}; use an intact file")
        if all(k in own and own[k].shape == state[k].shape for k in (stem + "a", stem + "b")):
            continue
        if bool(b.any()):
            raise WeightsError(f"weights {source} have a trained addition at {stem}b that the model has no place for: "
                               f"{_remedy(stem, a, own, state)}")
        del out[stem + "a"], out[stem + "b"]
    return out


def _remedy(stem: str, a: Tensor, own: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    present = own.get(stem + "a")
    if stem.endswith("gram_"):
        if present is not None and present.shape[0] != a.shape[0]:
            return (f"it was trained on {a.shape[0]} tokens, the model has {present.shape[0]}: set the model.img_size and "
                    "model.patch_size that it was trained with")
        return f"set model.gram.enabled=true model.gram.rank={a.shape[1]} (for all its blocks)"
    places = sorted({n.split(".", 2)[-1] if n.startswith("blocks.") else n
                     for n in (k.rpartition(".")[0] for k in state if k.endswith("lora_b"))})
    return f"set model.lora.enabled=true model.lora.rank={a.shape[0]} model.lora.targets=[{','.join(places)}]"


def check_scale(model: nn.Module, made_from: dict[str, Any], source: str) -> None:
    """Raise WeightsError where LoRA that does something was trained with another scale alpha/rank than the model's.

    made_from: the model configuration inside the checkpoint; nothing is checked without one.
    """
    lora = made_from.get("lora")
    if not isinstance(lora, dict) or not lora.get("enabled"):
        return
    alpha = lora["rank"] if lora.get("alpha") is None else lora["alpha"]
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear) and module.lora_scale != alpha / lora["rank"] and bool(module.lora_b.any()):
            raise WeightsError(f"weights {source}: the LoRA of {name!r} was trained with model.lora.alpha={alpha:g}: set it")


@contextmanager
def idle_additions(model: nn.Module, trained: Collection[str] = ()) -> Iterator[list[str]]:
    """Within it, additions whose B is all zeros and of which nothing is `trained` are skipped: they would add zeros.

    Gives their names ("blocks.0.attn.gram"). On leaving, every addition computes again.
    """
    idle: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        kind = "gram" if isinstance(module, GramMixin) else "lora" if isinstance(module, LoraLinear) else ""
        if not kind or getattr(module, f"{kind}_idle"):
            continue
        own = [f"{name}.{kind}_{part}" for part in "ab"]
        if not any(n in trained for n in own) and not bool(getattr(module, f"{kind}_b").any()):
            idle[f"{name}.{kind}"] = module
            setattr(module, f"{kind}_idle", True)
    try:
        yield list(idle)
    finally:
        for name, module in idle.items():
            delattr(module, f"{name.rpartition('.')[2]}_idle")
