"""Nested states (of optimisers, of what watches) as JSON and named tensors, so that nothing is ever pickled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_TENSOR, _TUPLE, _PAIRS, _DTYPE = "\0tensor", "\0tuple", "\0pairs", "\0dtype"   # marks that no key of a state is

_GENERATORS = "generators"


def pack(value: Any, prefix: str) -> tuple[Any, dict[str, Tensor]]:
    """A tree of dicts, lists, tuples, numbers, text, None, types of elements and tensors -> what JSON holds, and the
    tensors by name.

    Each tensor is named by its path below `prefix`. Raises TypeError for anything else.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value.detach()
            return {_TENSOR: path}
        if isinstance(value, dict):
            if all(isinstance(k, str) for k in value):
                return {k: walk(v, f"{path}/{k}" if path else k) for k, v in value.items()}
            return {_PAIRS: [[walk(k, path), walk(v, f"{path}/{k}" if path else str(k))] for k, v in value.items()]}
        if isinstance(value, (list, tuple)):
            inner = [walk(v, f"{path}.{i}") for i, v in enumerate(value)]
            return {_TUPLE: inner} if isinstance(value, tuple) else inner
        if isinstance(value, torch.dtype):
            return {_DTYPE: str(value).removeprefix("torch.")}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"{path or 'it'} is a {type(value).__name__}")

    return walk(value, prefix), tensors


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of `pack`. Raises KeyError for a tensor that is not there."""
    if isinstance(packed, dict):
        if _TENSOR in packed:
            return tensors[packed[_TENSOR]]
        if _TUPLE in packed:
            return tuple(unpack(v, tensors) for v in packed[_TUPLE])
        if _DTYPE in packed:
            return getattr(torch, packed[_DTYPE])
        if _PAIRS in packed:
            return {unpack(k, tensors): unpack(v, tensors) for k, v in packed[_PAIRS]}
        return {k: unpack(v, tensors) for k, v in packed.items()}
    return [unpack(v, tensors) for v in packed] if isinstance(packed, list) else packed


def by_name(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Any]:
    """The state of an optimiser with parameters by name, and of its random generators. names: id(parameter) -> name."""
    state = optimizer.state_dict()
    of = _numbers(optimizer, names)
    groups = [{**g, "params": [of[i] for i in g["params"]]} for g in state["param_groups"]]
    drawn = {key: g.get_state() for key, g in vars(optimizer).items() if isinstance(g, torch.Generator)}
    return {**state, "state": {of[i]: v for i, v in state["state"].items()}, "param_groups": groups, _GENERATORS: drawn}


def load_by_name(optimizer: torch.optim.Optimizer, state: dict[str, Any], names: dict[int, str]) -> None:
    """Inverse of `by_name`. Raises KeyError for a parameter that the optimiser does not have."""
    numbers = {n: i for i, n in _numbers(optimizer, names).items()}
    groups = [{**g, "params": [numbers[n] for n in g["params"]]} for g in state["param_groups"]]
    state = dict(state)
    for key, drawn in state.pop(_GENERATORS).items():
        getattr(optimizer, key).set_state(drawn)
    optimizer.load_state_dict({**state, "state": {numbers[n]: v for n, v in state["state"].items()},
                               "param_groups": groups})


def _numbers(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[int, str]:
    """torch numbers parameters by their order over the groups."""
    return dict(enumerate(names[id(p)] for g in optimizer.param_groups for p in g["params"]))
