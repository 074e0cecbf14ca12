"""What PyTorch does beside the arithmetic, made part of the graph: where gradients stop, what is written in place.

`torch.no_grad()` is exported as a call of a subgraph, `detach` as an operation that most tools drop, an in-place
operation as a write that a list of operations on values cannot show. Afterwards there are only operations that make
new values, and `vt::stop_gradient` wherever PyTorch's gradient ends.
"""

from __future__ import annotations

import operator
import warnings
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import OutputKind

from compilation.errors import CaptureError

_LIBRARY = torch.library.Library("vt", "DEF")
_LIBRARY.define("stop_gradient(Tensor x) -> Tensor")
_LIBRARY.impl("stop_gradient", lambda x: x.detach().clone(), "CompositeExplicitAutograd")
_LIBRARY.impl("stop_gradient", torch.library.fallthrough_kernel, "Autograd")
torch.library.register_fake("vt::stop_gradient", torch.empty_like, lib=_LIBRARY)
STOP_GRADIENT = torch.ops.vt.stop_gradient.default

STOPS = {"aten::detach", "aten::detach_", "aten::detach_copy"}
FRESH = {"aten::lift_fresh_copy", "aten::lift_fresh"}
MUTATIONS = {OutputKind.BUFFER_MUTATION: "buffer", OutputKind.PARAMETER_MUTATION: "parameter",
             OutputKind.USER_INPUT_MUTATION: "input"}


def path_of(node: fx.Node) -> str:
    """The module path of the layer that a node belongs to, for messages."""
    stack = node.meta.get("nn_module_stack") or {}
    return (list(stack.values())[-1][0].removeprefix("L['self'].") if stack else "") or "the model's top level"


def operation(node: fx.Node) -> str:
    """The PyTorch name of a node's operation, without its overload: "aten::dropout"."""
    schema = getattr(node.target, "_schema", None)
    return schema.name if schema is not None else getattr(node.target, "__name__", str(node.target))


def inline_regions(exported: Any) -> None:
    """Put no_grad regions and `detach` into the graph, in place, as `vt::stop_gradient`.

    Raises CaptureError for autocast and for control flow that depends on values.
    """
    _inline(exported.graph_module)
    for node in list(exported.graph.nodes):
        if node.op == "call_function" and operation(node) in STOPS:
            _replace_stop(exported.graph, node)
    exported.graph_module.recompile()


def functional(exported: Any) -> Any:
    """The exported program without in-place operations. Raises CaptureError for a model that writes to its buffers,
    parameters or input."""
    if not any(_writes(n) for n in exported.graph.nodes):
        return exported
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = exported.run_decompositions({})
    for spec in exported.graph_signature.output_specs:
        if spec.kind in MUTATIONS:
            raise CaptureError(f"the model writes to its {MUTATIONS[spec.kind]} {spec.target} while it runs: a training "
                               "step on the device changes nothing but the trained parameters; remove that write")
    return exported


def _writes(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False)


def _replace_stop(graph: fx.Graph, node: fx.Node) -> None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if operation(source) in FRESH:          # torch.tensor(...) inside forward: a constant has no gradient to stop
        node.replace_all_uses_with(source)
        graph.erase_node(node)
        return
    with graph.inserting_before(node):
        stop = graph.call_function(STOP_GRADIENT, (source,))
    stop.meta = dict(node.meta)
    node.replace_all_uses_with(stop)
    graph.erase_node(node)


def _inline(module: fx.GraphModule) -> None:
    """Put the nodes of every `wrap_with_set_grad_enabled` subgraph in its place; what leaves a no_grad region stops."""
    graph = module.graph
    for node in [n for n in graph.nodes if n.op == "call_function" and isinstance(n.target, torch._ops.HigherOrderOperator)]:
        if operation(node) == "wrap_with_autocast":
            raise CaptureError(f"autocast in {path_of(node)} computes in another precision: the device computes in "
                               "float32; take the autocast region out")
        if operation(node) != "wrap_with_set_grad_enabled":
            raise CaptureError(f"operation {operation(node)} in {path_of(node)} is control flow that depends on values: "
                               "the device runs one fixed list of operations; compute both ways and select, or fix the way")
        enabled, inner, *operands = node.args
        assert isinstance(inner, fx.Node)
        body = module.get_submodule(str(inner.target))
        assert isinstance(body, fx.GraphModule)
        _inline(body)
        values: dict[fx.Node, Any] = dict(zip([n for n in body.graph.nodes if n.op == "placeholder"], operands, strict=True))
        results: tuple[Any, ...] = ()
        with graph.inserting_before(node):
            for n in body.graph.nodes:
                if n.op == "call_function":
                    values[n] = graph.node_copy(n, values.__getitem__)
                elif n.op == "output":
                    results = tuple(values[r] for r in n.args[0])
            if not enabled:
                stops = {r: graph.call_function(STOP_GRADIENT, (r,)) for r in dict.fromkeys(results)}
                for source, stop in stops.items():
                    stop.meta = {k: v for k, v in source.meta.items() if k in ("val", "nn_module_stack")}
                results = tuple(stops[r] for r in results)
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
        if not inner.users:
            graph.erase_node(inner)
