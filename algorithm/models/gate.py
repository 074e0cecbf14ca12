"""The output gate on an attention, "Gated Attention for Large Language Models" (Qiu et al. 2025), its elementwise form G1.

    Y = (concat_h softmax(Q_h K_h^T / sqrt(d)) V_h * g(X)) W_o + b_o,    g(X) = 2 sigmoid(X W_g^T + b_g)

X (N, D) is the attention's input, after the block's norm; g (N, D) has one gate a token and output feature of each head.
W_g and b_g start as zeros, so that g is exactly 1: the gate starts as a no-op, of pretrained weights and of random ones,
and its gradient is not zero. The paper's gate is sigmoid alone; the 2 is the same family of functions (W_o doubled) with a
start that changes nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GateMixin:
    """Fills the place that timm's attentions have for a gate; parameters `gate_w` (H d, D) and `gate_b` (H d).

    timm's own gate is a linear `gate` under a plain sigmoid: the names differ, because the meaning does. `gate_idle` True
    skips the gate; only `additions.idle_additions` sets it, where the gate is known to be 1.
    """

    gate_w: nn.Parameter
    gate_b: nn.Parameter
    gate_idle = False

    @property
    def gate(self) -> Any:
        """What timm's forward applies to X and puts a sigmoid on; None: no gate."""
        return None if self.gate_idle else self._gate_scores

    def _gate_scores(self, x: Tensor) -> Tensor:
        return F.linear(x, self.gate_w, self.gate_b)

    @property
    def norm(self) -> Any:
        """What timm's forward applies to the heads' output before the gate: its norm, and the gate's factor 2."""
        own = self._modules["norm"]     # type: ignore[attr-defined]
        return own if self.gate_idle else lambda heads: own(heads) * 2.0


@cache
def _gated_class(attention: Any) -> Any:
    return type(f"Gated{attention.__name__}", (GateMixin, attention), {})


def has_place_for_gate(attention: nn.Module) -> bool:
    """Whether it is one of timm's attentions that know a gate and a norm before their projection, and has no gate yet."""
    return vars(attention).get("gate", True) is None and "norm" in attention._modules \
        and isinstance(getattr(attention, "proj", None), nn.Linear)


def add_gate(attention: nn.Module, dim: int) -> nn.Module:
    """Give an attention (see `has_place_for_gate`) an output gate, in place, keeping every parameter name it had.

    dim: D, its feature width. Returns the same module.
    """
    proj: nn.Linear = attention.proj  # type: ignore[assignment]
    attention.gate_w = nn.Parameter(torch.zeros(proj.in_features, dim).to(proj.weight))
    attention.gate_b = nn.Parameter(torch.zeros(proj.in_features).to(proj.weight))
    kind: Any = type(attention)
    attention.__class__ = _gated_class(kind)
    return attention
