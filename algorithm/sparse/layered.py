"""Plans that count matrix layers instead of blocks (`count: layers`), as the ancestor of this project does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from algorithm.errors import PlanError
from algorithm.sparse.config import Count, PlanConfig
from algorithm.sparse.plan import Choice
from algorithm.sparse.select import MATRICES, extent, last, select

_HEAD = "head.weight"


def matrix_layers(names: list[str], types: list[str]) -> list[tuple[str, str]]:
    """(layer type, name without ".weight") of the matrix layers of these types, in the model's order."""
    endings = {ending: kind for kind, group in MATRICES.items() for ending in group}
    found = []
    for name in names:
        parts = name.split(".")
        kind = "head" if name == _HEAD else endings.get(".".join(parts[2:])) if parts[0] == "blocks" else None
        if kind in types:
            found.append((str(kind), name.removesuffix(".weight")))
    return found


def layer_choices(config: PlanConfig, named: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Choice]:
    """What a rule with `count: layers` trains of the matrix layers and their biases.

    A share of a matrix is rounded down to whole columns (rows), as the ancestor does it. Raises PlanError where the rule
    asks for more layers than there are, or for less than one column.
    """
    layers = matrix_layers(list(named), list(config.vit_layer_types))
    things = f"layers of {types(config)}"
    chosen: dict[str, Choice] = {}
    for i in last(config.n_bias_update, len(layers), "n_bias_update", things) if config.bias else []:
        if (bias := f"{layers[i][1]}.bias") in named:
            chosen[bias] = "all"
    updated = config.manual_weight_idx
    if updated is None:
        updated = last(config.n_weight_update, len(layers), "n_weight_update", things)  # type: ignore[arg-type]
    for i, ratio in zip(updated, _ratios(config, updated, layers, things), strict=True):
        weight = named[f"{layers[i][1]}.weight"]
        k = int(ratio * extent(weight, config))
        if ratio > 0 and k == 0:
            raise PlanError(f"weight_update_ratio {ratio:g} of {layers[i][1]}.weight, {extent(weight, config)} "
                            f"{config.weight_select_axis}, is less than one: raise it, or set 0")
        if choice := select(weight, k, config, generator):
            chosen[f"{layers[i][1]}.weight"] = choice
    return chosen


def _ratios(config: PlanConfig, updated: list[int], layers: list[tuple[str, str]], things: str) -> list[float]:
    """The share of each updated layer. Raises PlanError for an index that is no layer, or a list of another length."""
    if bad := [i for i in updated if not 0 <= i < len(layers)]:
        raise PlanError(f"manual_weight_idx {bad[0]} is none of the model's {len(layers)} {things}: use 0 to "
                        f"{len(layers) - 1}")
    ratio = config.weight_update_ratio
    if isinstance(ratio, dict):
        return [ratio.get(layers[i][0], 1.0) for i in updated]  # type: ignore[call-overload]
    values = ratio if isinstance(ratio, list) else [ratio] * len(updated)
    if len(values) != len(updated):
        raise PlanError(f"weight_update_ratio lists {len(values)} values for {len(updated)} updated layers")
    return values


def types(config: PlanConfig) -> str:
    """"attention+head"."""
    return "+".join(config.vit_layer_types)


def layers_name(config: PlanConfig) -> str:
    """A short name for people: "25 % of the last 8 attention+head layers, bias of the last 8"."""
    words = []
    ratio, chosen = config.weight_update_ratio, config.manual_weight_idx
    if chosen or (chosen is None and config.n_weight_update):
        much = f"{100 * ratio:g} %" if isinstance(ratio, float) else "mixed shares"
        where = _last(config.n_weight_update) if chosen is None else f"layers {', '.join(map(str, chosen))} of the"  # type: ignore[arg-type]
        words.append(f"{much} of {where} {types(config)} layers")
    if config.n_bias_update and config.bias:
        words.append(f"bias of {_last(config.n_bias_update)}{'' if words else f' {types(config)} layers'}")
    return ", ".join(words)


def _last(count: Count) -> str:
    return "all" if count == "all" else f"the last {count}"
