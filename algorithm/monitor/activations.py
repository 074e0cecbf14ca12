"""Mean and standard deviation of what each block's attention and MLP give, and the norms of its Gram residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from algorithm.errors import ConfigError
from algorithm.monitor.config import MonitorConfig
from algorithm.monitor.gram import gram_probe, gram_values
from algorithm.monitor.observer import Observer, Scene, Values
from algorithm.monitor.probe import Probe, Reduce, evaluating

OUTPUTS = {"attn": "mhsa_out", "mlp": "mlp_out"}


def block_outputs(model: nn.Module) -> dict[str, nn.Module]:
    """"block_0/mhsa_out", "block_0/mlp_out", ... -> the module that gives it, for the blocks that have such modules."""
    blocks = getattr(model, "blocks", None)
    children = list(blocks.children()) if isinstance(blocks, nn.Module) else []
    return {f"block_{i}/{label}": module for i, block in enumerate(children) for part, label in OUTPUTS.items()
            if isinstance(module := getattr(block, part, None), nn.Module)}


class ForwardObserver(Observer):
    """An observer of a probe: in the training's own forward (all its passes), or, where that is compiled and sees no
    hooks, in a forward of the fixed samples as in evaluation."""

    def __init__(self, scene: Scene, every: int, probe: Probe) -> None:
        self.scene, self.every, self.probe = scene, every, probe

    def before_step(self, step: int) -> None:
        if self.scene.hooks:
            self.probe.on()

    def collect(self) -> None:
        """Take the hooks off; afterwards `probe.seen` has what passed, if there was anything to see."""
        self.probe.off()
        if not self.probe.seen and self.scene.samples is not None:
            with self.probe, evaluating(self.scene.model):
                self.scene.model.forward(self.scene.samples)  # not what `model.compile()` made of a call

    def close(self) -> None:
        self.probe.off()


class Activations(ForwardObserver):
    """`Activations/block_i/{mhsa_out,mlp_out}_{mean,std}` over all elements; mhsa_out with the Gram residual in it."""

    def __init__(self, scene: Scene, config: MonitorConfig) -> None:
        targets: dict[str, tuple[nn.Module, Reduce]] = {n: (m, _moments) for n, m in block_outputs(scene.model).items()}
        if not targets and config.changed("activations_every"):
            raise ConfigError(f"monitor.activations_every: {type(scene.model).__name__} has no blocks with an attn and an "
                              "mlp: set it to null")
        super().__init__(scene, config.activations_every or 0, Probe(targets))

    def after_step(self, step: int) -> Values:
        self.collect()
        values: Values = {}
        for name, seen in self.probe.seen.items():
            mean, std = _pooled(torch.stack(seen).double().cpu())
            values |= {f"Activations/{name}_mean": mean, f"Activations/{name}_std": std}
        return values


class GramNorms(ForwardObserver):
    """`GramLowRank/block_i/{T_norm,Z_norm,T_over_Z_norm,A_norm,B_norm}`."""

    def __init__(self, scene: Scene, config: MonitorConfig) -> None:
        probe = gram_probe(scene.model)
        if not probe.targets and config.changed("gram_every"):
            raise ConfigError("monitor.gram_every has no effect on a model without the Gram residual: set "
                              "model.gram.enabled=true, or leave gram_every out")
        super().__init__(scene, config.gram_every or 0, probe)

    def after_step(self, step: int) -> Values:
        self.collect()
        return {f"GramLowRank/block_{i}/{name}": value for i, norms in gram_values(self.probe).items()
                for name, value in norms.items()}


def _moments(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(mean, variance, elements) of an output."""
    variance, mean = torch.var_mean(y.float(), correction=0)
    return torch.stack([mean, variance, torch.full_like(mean, y.numel())])


def _pooled(moments: Tensor) -> tuple[float, float]:
    """Mean and standard deviation over several passes, from the (mean, variance, elements) of each: (passes, 3)."""
    mean, variance, count = moments.unbind(1)
    share = count / count.sum()
    middle = (share * mean).sum()
    return float(middle), float((share * (variance + (mean - middle) ** 2)).sum().sqrt())
