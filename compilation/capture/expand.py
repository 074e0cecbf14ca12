"""Operations spelled out in simpler ones, whose import, gradient and C form are known to be right.

Each expansion is PyTorch's own definition of the operation, in the names of its schema, with the gradient that PyTorch
gives it (a clamp passes the gradient at its limits, a hard tanh does not). The witness compares the result with the
module. An operation without an expansion that the importer does not know either is decomposed by PyTorch itself.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from compilation.capture import functions, layers  # noqa: F401  (they fill EXPANSIONS)
from compilation.capture.expansion import EXPANSIONS, Expansion
from compilation.capture.regions import operation

# What the importer knows as operations that have no gradient there: PyTorch's own decomposition instead.
DECOMPOSED = {"stack", "outer", "pixel_shuffle", "pixel_unshuffle", "einsum", "lstm", "gru", "rnn_tanh", "rnn_relu"}


def expand(exported: Any, importable: Collection[str] = ()) -> None:
    """Replace, in place, every node that has an expansion, and every node that is not `importable` where PyTorch can
    decompose it. importable: operation names with overload as the importer knows them ("add.Tensor").

    What neither knows is left for the importer to refuse by name.
    """
    graph = exported.graph
    work = list(graph.nodes)
    while work:
        node = work.pop()
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = operation(node).removeprefix("aten::")
        made = _spell_out(graph, node, EXPANSIONS[name]) if name in EXPANSIONS else []
        foreign = bool(importable) and node.target.__name__ not in importable
        if not made and (foreign or name in DECOMPOSED) and node.target.namespace == "aten":
            made = _decompose(graph, node)
        work += made
    graph.eliminate_dead_code()
    exported.graph_module.recompile()


# -- how a node is replaced ------------------------------------------------------------------------------
class _Tracer(fx.proxy.GraphAppendingTracer):
    """Appends operations to a graph, each with its value's shape and the module path of the node it replaces."""

    def __init__(self, graph: fx.Graph, origin: fx.Node) -> None:
        super().__init__(graph)
        self.origin, self.made = origin, []  # type: ignore[var-annotated]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.annotate(node)
        return node

    def annotate(self, node: fx.Node) -> None:
        values = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        node.meta |= {k: v for k, v in self.origin.meta.items() if k == "nn_module_stack"}
        node.meta["val"] = node.target(*values[0], **values[1])  # type: ignore[operator]
        self.made.append(node)


def _spell_out(graph: fx.Graph, node: fx.Node, expansion: Expansion) -> list[fx.Node]:
    """The nodes that replace `node`; none when the expansion leaves it as it is."""
    with graph.inserting_before(node):
        tracer = _Tracer(graph, node)
        arguments = {a.name: a.default_value for a in node.target._schema.arguments}  # type: ignore[union-attr]
        names = list(arguments)
        arguments |= dict(zip(names, node.args, strict=False)) | node.kwargs
        proxied: dict[str, Any] = {k: fx.map_arg(v, lambda n: fx.Proxy(n, tracer))  # type: ignore[arg-type,return-value]
                                   for k, v in arguments.items()}
        result = expansion(**{"input" if k == "self" else k: v for k, v in proxied.items()})
    if result is None:
        return []
    node.replace_all_uses_with(result.node)
    graph.erase_node(node)
    return tracer.made


def _decompose(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """PyTorch's own decomposition of an operation into plain ones, if it has one that applies."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    rule = torch._decomp.decomposition_table.get(target) or (target.decompose if target.has_kernel_for_dispatch_key(
        torch._C.DispatchKey.CompositeImplicitAutograd) else None)
    inputs = list(node.all_input_nodes)
    if rule is None:
        return []

    def call(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        args, kwargs = fx.map_arg((node.args, node.kwargs), given.__getitem__)
        return rule(*args, **kwargs)

    try:
        with torch.backends.mkldnn.flags(enabled=False):     # its layers are black boxes
            body = make_fx(call)(*(n.meta["val"] for n in inputs)).graph
    except Exception:  # a decomposition that does not apply to these arguments: the importer names the operation
        return []
    if not all(n.op in ("placeholder", "output") or _plain(n.target) for n in body.nodes):
        return []
    values: dict[fx.Node, Any] = dict(zip([n for n in body.nodes if n.op == "placeholder"], inputs, strict=True))
    tracer = _Tracer(graph, node)
    with graph.inserting_before(node):
        for n in body.nodes:
            if n.op == "call_function":
                values[n] = graph.node_copy(n, values.__getitem__)
                tracer.annotate(values[n])
    result = fx.map_arg(next(n for n in body.nodes if n.op == "output").args[0], values.__getitem__)
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    for user in list(node.users):            # several results: each is picked by its number
        user.replace_all_uses_with(result[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)
    return [n for n in tracer.made if n.target is not target]


def _plain(target: Any) -> bool:
    """Something that makes a value of values: no write, none of the primitives that PyTorch cannot differentiate."""
    return target is operator.getitem or (isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"
                                          and not target._schema.is_mutable)
