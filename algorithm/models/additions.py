"""The output gate, the Gram residual and LoRA as additions to a built ViT: where they go, what a checkpoint has of them,
when they idle.

Each kind has a pair of parameters and is a no-op where the second of them, for the gate both, is all zeros.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from algorithm.errors import ModelError, WeightsError
from algorithm.models.config import ModelConfig
from algorithm.models.gate import GateMixin, add_gate, has_place_for_gate
from algorithm.models.gram import GramMixin, add_gram
from algorithm.models.lora import LoraLinear, add_lora
from algorithm.schema import nearest

PAIRS = {"gate_": ("w", "b"), "gram_": ("a", "b"), "lora_": ("a", "b")}     # stem -> endings of the two parameters
NO_OP_IF_ZERO = {"gate_": ("w", "b"), "gram_": ("b",), "lora_": ("b",)}     # which of them must be all zeros
_NAMES = {stem + end for stem, ends in PAIRS.items() for end in ends}
KINDS: dict[str, Any] = {"gate": GateMixin, "gram": GramMixin, "lora": LoraLinear}


def is_addition(name: str) -> bool:
    """Whether a parameter's name, with its path, is one of an addition's."""
    return name.rpartition(".")[2] in _NAMES


def add_additions(model: nn.Module, config: ModelConfig, tokens: int) -> None:
    """Give the model the gate, Gram residuals and LoRA of its configuration, in place; all start as no-ops.

    tokens: N, what an attention sees. Raises ModelError for a block, target or rank that the model does not have.
    """
    blocks: nn.Sequential = model.blocks  # type: ignore[assignment]
    for option in (config.gram, config.lora):
        bad = [i for i in option.blocks or [] if not 0 <= i < len(blocks)]
        if bad:
            raise ModelError(f"block {bad[0]} does not exist: the model has blocks 0 to {len(blocks) - 1}")
    dim = int(model.embed_dim)  # type: ignore[arg-type]
    if config.variant == "gated":
        for i in range(len(blocks)):
            attention = _attention(model, i, "an output gate", "model.variant=vanilla")
            if not has_place_for_gate(attention):
                raise ModelError(f"{config.name!r} takes no output gate: its {type(attention).__name__} has no place for "
                                 "one, or a gate of its own; set model.variant=vanilla, or take a plain vision transformer")
            add_gate(attention, dim)
    if config.gram.enabled:
        generator = torch.Generator().manual_seed(config.seed + 1)
        for i in range(len(blocks)) if config.gram.blocks is None else sorted(set(config.gram.blocks)):
            attention = _attention(model, i, "the Gram residual", "model.gram.enabled=false (--no-gram)")
            heads = _heads(attention, dim, config.name) if config.gram.form == "head" else None
            add_gram(attention, tokens, dim, config.gram.rank, config.gram.std, generator, heads)
    if config.lora.enabled:
        generator = torch.Generator().manual_seed(config.seed + 2)
        for target in config.lora.targets:
            _add_lora_at(model, target, config, generator)


def _attention(model: nn.Module, i: int, addition: str, instead: str) -> nn.Module:
    attention = getattr(model.blocks[i], "attn", None)  # type: ignore[index]
    if not isinstance(attention, nn.Module):
        raise ModelError(f"blocks.{i} of the model, a {type(model.blocks[i]).__name__}, has no one attention "  # type: ignore[index]
                         f"`attn` for {addition}: set {instead}")
    return attention


def _heads(attention: nn.Module, dim: int, name: str) -> int:
    heads = int(getattr(attention, "num_heads", 0))
    if not heads or dim % heads:
        raise ModelError(f"the head form of the Gram residual does not fit {name!r}: {dim} features are not {heads} equal "
                         "slices; set model.gram.form=token")
    return heads


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
    """A checkpoint's state without the additions that the model lacks, where they are no-ops.

    Raises WeightsError, with the options to set, for an addition that does something and has no place in the model.
    """
    out = dict(state)
    for stem, (a, b), (first, second) in _pairs(state):
        if a is None or b is None:
            raise WeightsError(f"weights {source}: {stem}{first if a is None else second} is missing beside "
                               f"{stem}{second if a is None else first}; use an intact file")
        if all(k in own and own[k].shape == state[k].shape for k in (stem + first, stem + second)):
            continue
        if acts := _acting(stem, state):
            raise WeightsError(f"weights {source} have a trained addition at {acts} that the model has no place for: "
                               f"{_remedy(stem, a, own, state)}")
        del out[stem + first], out[stem + second]
    return out


def without_additions(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """(the state without its additions, the names of those parameters that make an addition do something)."""
    acting = [name for stem, *_ in _pairs(state) if (name := _acting(stem, state))]
    return {k: v for k, v in state.items() if not is_addition(k)}, acting


def _pairs(state: Mapping[str, Tensor]) -> Iterator[tuple[str, tuple[Tensor | None, Tensor | None], tuple[str, str]]]:
    """Each addition in a state: "blocks.0.attn.gram_", its two tensors (None: missing), their endings."""
    for stem in dict.fromkeys(k[:-1] for k in state if is_addition(k)):
        first, second = PAIRS[stem.rpartition(".")[2]]
        yield stem, (state.get(stem + first), state.get(stem + second)), (first, second)


def _acting(stem: str, state: Mapping[str, Tensor]) -> str:
    """The name of a tensor that makes the addition do something; empty where it is a no-op."""
    names = [stem + end for end in NO_OP_IF_ZERO[stem.rpartition(".")[2]]]
    return next((n for n in names if bool(state[n].any())), "")


def _remedy(stem: str, a: Tensor, own: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    if stem.endswith("gate_"):
        return "set model.variant=gated"
    present = own.get(stem + "a")
    if stem.endswith("gram_"):
        if present is not None and present.ndim == a.ndim and present.shape[-2] != a.shape[-2]:
            return (f"it was trained on {a.shape[-2]} tokens, the model has {present.shape[-2]}: set the model.img_size and "
                    "model.patch_size that it was trained with")
        form = " model.gram.form=head" if a.ndim == 3 else ""
        return f"set model.gram.enabled=true{form} model.gram.rank={a.shape[-1]} (for all its blocks)"
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
    """Within it, additions that are no-ops and of which nothing is `trained` are skipped: they would change nothing.

    Gives their names ("blocks.0.attn.gram"). On leaving, every addition computes again.
    """
    idle: dict[str, nn.Module] = {}
    module: Any
    for name, module in model.named_modules():
        for kind, of in KINDS.items():
            stem = f"{kind}_"
            if not isinstance(module, of) or getattr(module, f"{stem}idle"):
                continue
            own: dict[str, Tensor] = {stem + end: getattr(module, stem + end) for end in PAIRS[stem]}
            if not any(f"{name}.{n}" in trained for n in own) and not _acting(stem, own):
                idle[f"{name}.{kind}"] = module
                setattr(module, f"{stem}idle", True)
    try:
        yield list(idle)
    finally:
        for name, module in idle.items():
            delattr(module, f"{name.rpartition('.')[2]}_idle")
