"""Does Relax mean what PyTorch means? Each operation whose import is not proven by the tests is tried, once, on numbers.

Relax's importer ignores arguments that it does not know (the `alpha` of an addition, the `scale` of an attention) and
guesses at others. The operations of `PROVEN` are what the tests compare with PyTorch, values and gradients; any other
one in a model is imported and compiled on its own, and run beside PyTorch on the numbers that it meets in the model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import tvm
from torch import fx
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from compilation.capture import Exported
from compilation.capture.regions import STOP_GRADIENT, operation, path_of
from compilation.errors import UnsupportedOperationError
from compilation.tvm_adapter.door import REMEDY, door

PROVEN = {
    "linear.default", "conv2d.default", "matmul.default", "bmm.default", "layer_norm.default", "gelu.default",
    "relu.default",
    "scaled_dot_product_attention.default", "softmax.int", "log_softmax.int", "tanh.default", "sigmoid.default",
    "silu.default",
    "exp.default", "log.default", "sqrt.default", "reciprocal.default", "neg.default", "abs.default", "erf.default",
    "add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "maximum.default", "where.self", "full_like.default",
    "gt.Scalar", "ge.Scalar", "lt.Scalar", "le.Scalar", "mean.dim", "sum.dim_IntList",
    "view.default", "reshape.default", "flatten.using_ints", "permute.default", "transpose.int", "unsqueeze.default",
    "squeeze.dim", "expand.default", "select.int", "slice.Tensor", "cat.default", "unbind.int", "split.Tensor",
    "chunk.default",
    "clone.default", "contiguous.default", "lift_fresh_copy.default", "new_ones.default", "new_zeros.default", "getitem"}
FREE = {"memory_format", "dtype", "device", "layout", "pin_memory"}      # keyword arguments that change no float32 value
TOLERANCE = 1e-4        # of the largest element


def prove_imports(exported: Exported) -> None:
    """Try every operation of the graph that needs it. Raises UnsupportedOperationError naming one that Relax gets wrong."""
    doubtful = [n for n in exported.program.graph.nodes if n.op == "call_function" and not _proven(n)]
    if not doubtful:
        return
    values = _Recorder(exported).values
    tried: set[str] = set()
    for node in doubtful:
        inputs = [values[n] for n in node.all_input_nodes]
        key = f"{node.target} {[tuple(v.shape) for v in inputs]} {fx.map_arg((node.args, node.kwargs), lambda n: 'x')}"
        if key not in tried:
            tried.add(key)
            _try(node, inputs, values[node])


def _proven(node: fx.Node) -> bool:
    if node.target is STOP_GRADIENT:
        return True
    plain = all(k in FREE or v is None for k, v in node.kwargs.items())
    return plain and getattr(node.target, "__name__", "") in PROVEN


class _Recorder(fx.Interpreter):
    """Runs the captured graph on random numbers and keeps every value."""

    def __init__(self, exported: Exported) -> None:
        super().__init__(exported.program.graph_module)
        self.values: dict[fx.Node, Any] = {}
        x = torch.randn((1, *exported.spec.shape), generator=torch.Generator().manual_seed(0))
        names = exported.argument_names
        with torch.no_grad():
            self.run(*(torch.from_numpy(exported.parameters[names[n.name]].copy()) if n.name in names else x
                       for n in exported.program.graph.nodes if n.op == "placeholder"))

    def run_node(self, n: fx.Node) -> Any:
        self.values[n] = super().run_node(n)
        return self.values[n]


class _One(torch.nn.Module):
    """A single operation, its tensors given as inputs."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self.node = node

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = dict(zip(self.node.all_input_nodes, tensors, strict=True))
        args, kwargs = fx.map_arg((self.node.args, self.node.kwargs), given.__getitem__)
        return self.node.target(*args, **kwargs)  # type: ignore[operator]


def _try(node: fx.Node, inputs: list[torch.Tensor], wanted: Any) -> None:
    if not inputs or not isinstance(wanted, torch.Tensor):
        return                               # a constant, or several results: seen again where they are used
    name = f"operation {operation(node)} in {path_of(node)}"
    with door(UnsupportedOperationError, lambda: name, REMEDY):
        single = torch.export.export(_One(node).eval(), tuple(inputs))
        module = ExportedProgramImporter().from_exported_program(single, False, True, False, None)
        machine = relax.VirtualMachine(tvm.compile(module, target="llvm"), tvm.cpu())
        found = machine["main"](*(tvm.runtime.tensor(v.contiguous().numpy()) for v in inputs)).numpy()
    want = wanted.numpy()
    limit = TOLERANCE * max(float(np.abs(want.astype(np.float64)).max(initial=0.0)), 1e-6)
    if found.shape != want.shape or not np.allclose(found.astype(np.float64), want.astype(np.float64), rtol=0, atol=limit):
        given = ", ".join([*map(str, node.args[len(inputs):]), *(f"{k}={v}" for k, v in node.kwargs.items())])
        raise UnsupportedOperationError(f"{name} is imported as something else than it is in PyTorch"
                                        f"{f' (with {given})' if given else ''}: {REMEDY}")
