"""Forward hooks that reduce what passes through chosen modules to a few numbers, and leave no trace on the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Reduce = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(module, first input, output), both detached and without autograd -> a small tensor to keep."""


class Probe:
    """`on()` puts a hook on each target, `off()` takes them away; `seen[name]` holds what `reduce` made, a forward each.

    The values stay on the model's device: nothing waits for a GPU until they are read. Hooks change no value and take no
    random number. In a forward that torch.compile has traced they do nothing, and `seen` stays empty.
    """

    def __init__(self, targets: Mapping[str, tuple[nn.Module, Reduce]]) -> None:
        self.targets = dict(targets)
        self.seen: dict[str, list[Tensor]] = {}
        self._handles: list[Any] = []

    def on(self) -> None:
        """Begin anew: forget what was seen, hook every target."""
        self.off()
        self.seen = {}
        for name, (module, reduce) in self.targets.items():
            self._handles.append(module.register_forward_hook(self._hook(name, reduce)))

    def off(self) -> None:
        """Take the hooks away; what was seen stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, name: str, reduce: Reduce) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if torch.compiler.is_compiling():  # a constant to the tracer, which so traces no hook
                return
            with torch.no_grad():
                self.seen.setdefault(name, []).append(reduce(module, inputs[0].detach(), output.detach()))

        return hook

    def __enter__(self) -> Probe:
        self.on()
        return self

    def __exit__(self, *_: object) -> None:
        self.off()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without autograd; afterwards every module is in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
