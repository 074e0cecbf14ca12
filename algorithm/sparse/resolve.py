"""From a plan's rules to an explicit plan for a model."""

from __future__ import annotations

import torch
from torch import nn

from algorithm.errors import PlanError
from algorithm.models.gram import GramMixin
from algorithm.models.lora import LoraLinear
from algorithm.sparse.config import Count, PlanConfig
from algorithm.sparse.layered import layer_choices, layers_name
from algorithm.sparse.plan import Choice, Slice, UpdatePlan
from algorithm.sparse.select import MATRICES, extent, last, select

SLICEABLE = (nn.Linear, LoraLinear)  # a class of its own may compute in its own way
_FINAL_NORMS = ("norm.", "fc_norm.")


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter."""
    return {n: tuple(p.shape) for n, p in model.named_parameters()}


def check_plan(plan: UpdatePlan, model: nn.Module) -> None:
    """Raise PlanError unless every name, index and slice of the plan is one that the model can train."""
    plan.check(parameter_shapes(model))
    check_gram_rank(plan.gram_rank, model)
    for name, choice in plan.parameters.items():
        owner, _, last = name.rpartition(".")
        if isinstance(choice, Slice) and (last != "weight" or type(model.get_submodule(owner)) not in SLICEABLE):
            raise PlanError(f"the plan slices {name!r}, which is not the weight of a linear; use all or none")


def check_gram_rank(rank: int | None, model: nn.Module) -> int | None:
    """The rank at which a plan trains the Gram residuals; None where that is the model's. Raises PlanError where the model
    has a lower one."""
    ranks = {int(m.gram_b.shape[-2]) for m in model.modules() if isinstance(m, GramMixin)}
    if rank is None or not ranks:
        return None
    if rank > min(ranks):
        raise PlanError(f"gram_rank={rank} is more than the model's Gram residuals have, {min(ranks)}: lower it, or raise "
                        "model.gram.rank")
    return None if ranks == {rank} else rank


def resolve_plan(config: PlanConfig, model: nn.Module) -> UpdatePlan:
    """The explicit plan of a rule. Raises PlanError when the rule does not fit the model."""
    named = dict(model.named_parameters())
    if not config.enable_backward_config:
        plan = UpdatePlan(dict.fromkeys(named, "all"), config.name or "full update")
        return _with_explicit(plan, config, model)
    depth = len(model.blocks)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(config.seed)
    counted = layer_choices(config, named, generator) if config.count == "layers" else None
    biased = set(last(config.n_bias_update if counted is None else 0, depth, "n_bias_update"))
    gram = set(last(config.n_gram_update, depth, "n_gram_update"))
    lora = set(last(config.n_lora_update, depth, "n_lora_update"))
    gate = set(last(config.n_gate_update, depth, "n_gate_update"))
    ratios: dict[str, dict[int, float]] = {t: _ratios(config, t, depth) if counted is None else {} for t in MATRICES}
    chosen: dict[str, Choice] = {}
    for name, parameter in named.items():
        parts = name.split(".")
        inside = parts[0] == "blocks"
        block, rest = (int(parts[1]), ".".join(parts[2:])) if inside else (-1, name)
        choice: Choice | None = None
        if parts[-1] in ("gate_w", "gate_b"):
            choice = "all" if block in gate else None
        elif parts[-1] in ("lora_a", "lora_b"):
            choice = "all" if (block in lora if inside else lora) else None
        elif parts[-1] in ("gram_a", "gram_b"):
            choice = "all" if block in gram else None
        elif counted is not None:
            choice = counted.get(name)
        elif not inside:
            if parts[0] == "head":
                choice = "all" if "head" in config.vit_layer_types else None
            elif name.startswith(_FINAL_NORMS):
                choice = "all" if biased and config.layer_norm else None
        elif rest.startswith(("norm1.", "norm2.")):
            choice = "all" if block in biased and config.layer_norm else None
        elif rest.startswith(("ls1.", "ls2.")):
            choice = "all" if block in biased and config.layer_scale else None
        elif parts[-1] == "bias":
            choice = "all" if block in biased and config.bias else None
        else:
            kind = next((t for t in MATRICES if rest in MATRICES[t]), "")
            if block in ratios.get(kind, {}):
                choice = select(parameter, _share(ratios[kind][block], extent(parameter, config)), config, generator)
        if choice is not None:
            chosen[name] = choice
    if gram and not any(n.endswith("gram_b") for n in chosen):
        raise PlanError("n_gram_update asks for the Gram matrices, but the model has none: set model.gram.enabled=true")
    if lora and not any(n.endswith("lora_b") for n in chosen):
        raise PlanError("n_lora_update asks for LoRA matrices, but the model has none: set model.lora.enabled=true")
    if gate and not any(n.endswith("gate_w") for n in chosen):
        raise PlanError("n_gate_update asks for output gates, but the model has none: set model.variant=gated")
    rank = check_gram_rank(config.gram_rank, model)
    return _with_explicit(UpdatePlan(chosen, config.name or plan_name(config), rank), config, model)


def _share(ratio: float, n: int) -> int:
    """round(ratio * n) of n columns or rows, at least one unless ratio is 0."""
    return n if ratio == 1.0 else max(1, round(ratio * n)) if ratio > 0 else 0


def _ratios(config: PlanConfig, kind: str, depth: int) -> dict[int, float]:
    """Block -> share of its matrices of a layer type; empty where the type is not updated."""
    if kind not in config.vit_layer_types:
        return {}
    blocks = config.manual_weight_idx
    if blocks is None:
        count = config.n_weight_update
        count = count.get(kind, 0) if isinstance(count, dict) else count
        blocks = last(count, depth, "n_weight_update")
    bad = [b for b in blocks if not 0 <= b < depth]
    if bad:
        raise PlanError(f"manual_weight_idx {bad[0]} is not a block: the model has 0 to {depth - 1}")
    ratio = config.weight_update_ratio
    if isinstance(ratio, dict):
        ratio = ratio.get(kind, 1.0)
    values = ratio if isinstance(ratio, list) else [ratio] * len(blocks)
    if len(values) != len(blocks):
        raise PlanError(f"weight_update_ratio lists {len(values)} values for {len(blocks)} updated blocks")
    return dict(zip(blocks, values, strict=True))


def _with_explicit(plan: UpdatePlan, config: PlanConfig, model: nn.Module) -> UpdatePlan:
    explicit = UpdatePlan.from_dict({"version": 1, "parameters": config.parameters})
    for name in config.parameters:
        plan.parameters.pop(name, None)
    plan.parameters.update(explicit.parameters)
    order = list(dict(model.named_parameters()))
    UpdatePlan(dict.fromkeys(config.parameters, "all")).check(parameter_shapes(model))
    check_plan(plan, model)
    plan.parameters = {n: plan.parameters[n] for n in order if n in plan.parameters}
    return plan


def plan_name(config: PlanConfig) -> str:
    """A short name for people: "bias+LN of all blocks, attention 25 % of 4 blocks, head"."""
    layers = config.count == "layers"
    words = [w for w in [layers_name(config)] if w] if layers else _blocks_name(config)
    gram = "Gram" if config.gram_rank is None else f"Gram of rank {config.gram_rank} in"
    for label, n in ((gram, config.n_gram_update), ("LoRA", config.n_lora_update), ("gate", config.n_gate_update)):
        if n:
            words.append(f"{label}{'' if label.endswith('in') else ' of'} {_blocks(n)}")
    if "head" in config.vit_layer_types and not layers:
        words.append("head")
    return ", ".join(words) or "nothing"


def _blocks_name(config: PlanConfig) -> list[str]:
    words = []
    if config.n_bias_update and (config.bias or config.layer_norm):
        what = "+".join(w for w, on in (("bias", config.bias), ("LN", config.layer_norm)) if on)
        words.append(f"{what} of {_blocks(config.n_bias_update)}")
    parts: dict[str, list[str]] = {}  # what is said of some layer types -> those types
    for kind in config.vit_layer_types:
        count, ratio = config.n_weight_update, config.weight_update_ratio
        count = count.get(kind, 0) if isinstance(count, dict) else count
        ratio = ratio.get(kind, 1.0) if isinstance(ratio, dict) else ratio
        if kind != "head" and (count or config.manual_weight_idx):
            share = "mixed shares" if isinstance(ratio, list) else f"{100 * ratio:g} %"
            chosen = config.manual_weight_idx
            where = _blocks(count) if chosen is None else f"blocks {', '.join(map(str, chosen))}"
            parts.setdefault(f"{share} of {where}", []).append(kind)
    words += [f"{'+'.join(kinds)} {what}" for what, kinds in parts.items()]
    return words


def _blocks(count: Count) -> str:
    return "all blocks" if count == "all" else f"the last {count} blocks" if count > 1 else "the last block"
