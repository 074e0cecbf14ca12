"""How much the Gram residual does: Frobenius norms of T, of the attention's own output Z, of A and B, a block.

Y = Z + T with T the residual (algorithm/models/gram.py). The norms of T and Z are of one image's (tokens, features), the
mean over the images, so that they do not grow with the batch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from algorithm.models.gram import GramMixin, gram_residual
from algorithm.monitor.probe import Probe, evaluating


def gram_targets(model: nn.Module) -> dict[int, nn.Module]:
    """The attentions with a Gram residual, by the index of their block."""
    found = ((name.split("."), module) for name, module in model.named_modules())
    return {int(parts[1]): module for parts, module in found if parts[0] == "blocks" and hasattr(module, "gram_a")}


def gram_probe(model: nn.Module) -> Probe:
    """A probe of every Gram residual; what it sees is read by `gram_values`."""
    return Probe({str(i): (module, _norms) for i, module in gram_targets(model).items()})


def gram_values(probe: Probe) -> dict[int, dict[str, float]]:
    """{block: {T_norm, Z_norm, T_over_Z_norm, A_norm, B_norm}} of what the probe saw, the mean over its forwards."""
    out: dict[int, dict[str, float]] = {}
    for name, (module, _) in probe.targets.items():
        if name not in probe.seen:
            continue
        t, z = torch.stack(probe.seen[name]).double().mean(0).tolist()
        assert isinstance(module, GramMixin)
        a, b = (torch.linalg.vector_norm(p.detach().float()).item() for p in (module.gram_a, module.gram_b))
        out[int(name)] = {"T_norm": t, "Z_norm": z, "T_over_Z_norm": t / z if z else float("nan"), "A_norm": a, "B_norm": b}
    return out


def gram_norms(model: nn.Module, images: Tensor) -> dict[int, dict[str, float]]:
    """{block: {T_norm, Z_norm, T_over_Z_norm, A_norm, B_norm}} on images (B, C, H, W), normalised; the model is left as is.

    Empty for a model without Gram residuals. A residual that is skipped (`gram_idle`) has T_norm 0.
    """
    with gram_probe(model) as probe, evaluating(model):
        if probe.targets:
            model(images)
    return gram_values(probe)


class GramGrowth:
    """Readings of `gram_norms` over a training, at its begin and `READINGS` times after; none without trained residuals.

    images: (B, C, H, W), normalised. total: steps of the training. rows: [{"step": steps made, "block": its index, and the
    norms}], of the blocks whose residual the plan trains.
    """

    READINGS = 12

    def __init__(self, model: nn.Module, trained: Iterable[str], images: Tensor, total: int) -> None:
        self.model, self.images = model, images
        self.blocks = sorted({int(n.split(".")[1]) for n in trained if n.startswith("blocks.") and n.endswith("gram_b")})
        self.every = max(1, -(-total // self.READINGS))
        self.total = total
        self.rows: list[dict[str, float]] = []

    def after(self, made: int) -> dict[int, dict[str, float]]:
        """Read, where it is time, when `made` steps are made; what was read, by block."""
        if not self.blocks or not (made % self.every == 0 or made == self.total):
            return {}
        norms = {b: v for b, v in gram_norms(self.model, self.images).items() if b in self.blocks}
        self.rows += [{"step": made, "block": block, **values} for block, values in norms.items()]
        return norms


def _norms(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(mean ||T||, mean ||Z||) over the images; x, y (B, N, D)."""
    assert isinstance(module, GramMixin)
    if module.gram_idle:
        t = torch.zeros_like(y)
    else:
        t = gram_residual(x, module.gram_a.detach(), module.gram_b.detach()).to(y.dtype)
    both = torch.stack([t, y - t]).float()
    return torch.linalg.vector_norm(both, dim=(-2, -1)).mean(-1)
