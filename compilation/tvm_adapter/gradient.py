"""Compile-time autodiff: the forward Program through Relax's Gradient, for the wanted gradients only."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from tvm import relax
from tvm.ir import GenericConst, Op

from compilation.errors import GradientError
from compilation.ops import REGISTRY
from compilation.passes.rewrite import fresh
from compilation.program import STOP, Call, Program, Role, Tensor
from compilation.tvm_adapter.door import REMEDY, door
from compilation.tvm_adapter.keep import REAL, keep_call, rebuild_call, relax_type
from compilation.tvm_adapter.relax_ops import PREFIX, make_call, read_call, register_all
from compilation.types import F32, Type

TAIL = "relax:"


def differentiate(forward: Program, wanted: list[str]) -> tuple[list[Call], dict[str, str]]:
    """The backward calls of a forward Program that ends in a loss, and the gradient tensor of each wanted parameter.

    forward.loss names the loss tensor. Calls that depend on no wanted parameter form the frozen prefix:
    they are not shown to the differentiation at all. Gradient tensors are added to `forward.tensors`.
    Raises GradientError for an unknown parameter or an operation without a gradient.
    """
    for name in wanted:
        if name not in forward.tensors:
            raise GradientError(f"no gradient can be taken for {name!r}: the compiled model has no such parameter in use")
    calls = _between(forward, wanted)
    reached = {t for c in calls for t in c.inputs.values()}
    missing = [w for w in wanted if w not in reached]
    if missing:
        raise GradientError(f"no gradient of the loss reaches {', '.join(missing)} (detach, no_grad, or no way to the "
                            "result): PyTorch would leave it as it is; take it out of the plan")
    register_all()
    for c in calls:
        if c.op.startswith(TAIL) and Op.get(f"relax.{c.op.removeprefix(TAIL)}").get_attr("FPrimalGradient") is None:
            raise GradientError(f"operation {c.op.removeprefix(TAIL)} in {c.where or 'the model'} has no gradient: train "
                                f"only what lies above it, or {REMEDY}")
    with door(GradientError, lambda: _culprit(forward, calls), f"train only what lies above it, or {REMEDY}"):
        inputs, adjoint = _adjoint(forward, calls, wanted)
        return _Reader(forward, calls, inputs, adjoint).read(wanted)


def _between(program: Program, wanted: list[str]) -> list[Call]:
    """The calls on a way from a wanted parameter to the loss, in order. A stopped gradient ends a way."""
    live, above = set(wanted), []
    for c in program.calls:
        if live & set(c.inputs.values()) and STOP not in c.attrs:
            above.append(c)
            live |= set(c.outputs.values())
    needed, calls = {program.loss}, []
    for c in reversed(above):
        if needed & set(c.outputs.values()):
            calls.append(c)
            needed |= set(c.inputs.values())
    return calls[::-1]


def _adjoint(program: Program, calls: list[Call], wanted: list[str]) -> tuple[list[str], Any]:
    """Names of the inputs of the differentiated function, and the function with its gradients."""
    module, inputs = _to_relax(program, calls)
    variables = dict(zip(inputs, module["main"].params, strict=True))
    adjoint = relax.transform.Gradient("main", require_grads=[variables[w] for w in wanted])(module)["main_adjoint"]
    return inputs, adjoint


def _culprit(program: Program, calls: list[Call]) -> str:
    """Which operation it is that cannot be differentiated: the first that cannot be on its own."""
    for c in calls:
        probe = program.copy()
        result, = c.outputs.values()
        floats = [t for t in dict.fromkeys(c.inputs.values()) if probe.tensors[t].element == F32]
        probe.calls, probe.loss = [c], probe.add(Tensor(fresh(probe, "sum"), Type(()), Role.OUTPUT)).name
        total = relax.op.sum(relax.Var("x", relax_type(probe.tensors[result].type)))
        probe.calls.append(Call("relax:sum", {"in0": result}, {"y": probe.loss},
                                keep_call(relax.BlockBuilder().normalize(total))))
        try:
            _Reader(probe, probe.calls, *_adjoint(probe, probe.calls, floats)).read(floats)
        except Exception:  # this one
            return f"operation {c.op.removeprefix(TAIL)} in {c.where or 'the model'}"
    return "the gradient of the model"


def _to_relax(program: Program, calls: list[Call]) -> tuple[Any, list[str]]:
    made = {t for c in calls for t in c.outputs.values()}
    inputs = list(dict.fromkeys(t for c in calls for t in c.inputs.values() if t not in made))
    variables: dict[str, Any] = {
        n: relax.Var(f"in{i}", relax_type(program.tensors[n].type))
        for i, n in enumerate(inputs)}
    builder = relax.BlockBuilder()
    with builder.function("main", [variables[n] for n in inputs]):
        with builder.dataflow():
            for i, c in enumerate(calls):
                result, = c.outputs.values()
                if c.op == "reshape":
                    expr = relax.op.reshape(variables[c.inputs["x"]], list(program.tensors[result].shape))
                elif c.op == "add":         # Relax's own, so that its rule sends the gradient both ways
                    expr = relax.op.add(variables[c.inputs["a"]], variables[c.inputs["b"]])
                elif c.op == "mul_const":
                    expr = relax.op.multiply(variables[c.inputs["x"]], relax.const(c.attrs["value"], REAL))
                elif c.op.startswith("relax:"):
                    expr = rebuild_call(c, {s: variables[t] for s, t in c.inputs.items()})
                else:
                    expr = make_call(REGISTRY[c.op], {s: variables[t] for s, t in c.inputs.items()}, dict(c.attrs))
                variables[result] = builder.emit(expr, name_hint=f"call{i}")
            loss = builder.emit(relax.op.reshape(variables[program.loss], []))
            out = builder.emit_output(loss)
        builder.emit_func_output(out)
    return builder.get(), inputs


class _Reader:
    """Reads the adjoint function back as calls of the registry."""

    def __init__(self, program: Program, calls: list[Call], inputs: list[str], adjoint: Any) -> None:
        self.program, self.adjoint = program, adjoint
        self.names: dict[Any, Any] = {}       # Relax variable -> tensor name, or list of names (tuple)
        self.calls: list[Call] = []
        self.forward = {f"call{i}": c for i, c in enumerate(calls)}
        self.places = {t: c.where for c in program.calls for t in c.outputs.values()}     # tensor -> module path
        for var, name in zip(adjoint.params, inputs, strict=True):
            self.names[var] = name

    def read(self, wanted: list[str]) -> tuple[list[Call], dict[str, str]]:
        bindings = [b for block in self.adjoint.body.blocks for b in block.bindings]
        for b in bindings:
            forward = self.forward.get(str(b.var.name))
            if forward:
                self.names[b.var], = forward.outputs.values()
            else:
                self.names[b.var] = self._bind(b.value)
        gradients = self.adjoint.body.body.fields[1]
        found = {w: str(self._value(g)) for w, g in zip(wanted, gradients.fields, strict=True)}
        return self._only_needed(set(found.values())), found

    def _value(self, expr: Any) -> Any:
        if isinstance(expr, relax.Var):
            return self.names[expr]
        if isinstance(expr, relax.Tuple):
            return [self._value(f) for f in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            return self._value(expr.tuple_value)[expr.index]
        return None

    def _new(self, stem: str, shape: tuple[int, ...]) -> str:
        name, n = stem, 1
        while name in self.program.tensors:
            n += 1
            name = f"{stem}.{n}"
        return self.program.add(Tensor(name, Type(shape), Role.GRADIENT)).name

    def _bind(self, expr: Any) -> Any:
        if not isinstance(expr, relax.Call):
            return self._value(expr)
        name = expr.op.name
        if name.startswith(PREFIX):
            return self._registry_call(expr)
        args = [self._value(a) for a in expr.args]
        shape = tuple(int(v) for v in expr.ty.shape.values)
        if name == "relax.reshape":
            if args[0] is None or self.program.tensors.get(args[0]) is None:
                return None
            return self._emit(Call("reshape", {"x": args[0]}, {}), shape)
        if name == "relax.add" and all(args):
            a, b = (self.program.tensors[t] for t in args)
            if a.shape == b.shape == shape:
                return self._emit(Call("add", {"a": a.name, "b": b.name}, {}, where=a.source), shape)
        if name == "relax.multiply" and isinstance(args[0], str) and isinstance(expr.args[1], GenericConst):
            value = expr.args[1].value.numpy()
            if value.size == 1:
                return self._emit(Call("mul_const", {"x": args[0]}, {}, {"value": float(value)}), shape)
        if name in ("relax.ones", "relax.zeros") and math.prod(shape) == 1:
            return None                       # the loss's own gradient, 1, is known to cross_entropy_grad
        inputs = {f"in{i}": a for i, a in enumerate(args) if isinstance(a, str)}
        return self._emit(Call(f"relax:{name.removeprefix('relax.')}", inputs, {}, keep_call(expr)), shape)

    def _emit(self, call: Call, shape: tuple[int, ...]) -> str:
        stem = next(iter(call.inputs.values()), call.op)
        where = next((w for t in reversed(list(call.inputs.values())) if (w := self.places.get(t))), "")
        call = call if call.where else replace(call, where=where)
        out = self._new(f"{stem}.{call.op.removeprefix('relax:')}", shape)
        self.calls.append(replace(call, outputs={"y": out}))
        self.places[out] = call.where
        return out

    def _registry_call(self, expr: Any) -> Any:
        op, args, attrs = read_call(expr)
        inputs = {s: self._value(a) for s, a in args.items()}
        inputs = {s: t for s, t in inputs.items() if t is not None}
        gradients = attrs.pop("_gradients")
        source = next((c for c in self.program.calls if c.op == op.name.removesuffix("_grad")
                       and all(inputs.get(s, t) == t for s, t in c.inputs.items())), None)
        where = source.where if source else ""
        outputs: dict[str, str] = {}
        for s, shape in gradients.items():
            outputs[f"d_{s}"] = self._new(f"d.{source.inputs[s]}" if source else f"d.{op.name}.{s}", tuple(shape))
        self.calls.append(Call(op.name, inputs, outputs, {**op.defaults(), **attrs}, where=where))
        self.places |= dict.fromkeys(outputs.values(), where)
        return list(outputs.values())

    def _only_needed(self, needed: set[str]) -> list[Call]:
        """Drop outputs, inputs and calls that lead to no wanted gradient."""
        kept: list[Call] = []
        for c in reversed(self.calls):
            outputs = {s: t for s, t in c.outputs.items() if t in needed}
            for t in set(c.outputs.values()) - set(outputs.values()):
                del self.program.tensors[t]
            if not outputs:
                continue
            rules = REGISTRY[c.op].needed_for if c.op in REGISTRY else {}
            inputs = {s: t for s, t in c.inputs.items() if s not in rules or set(rules[s]) & set(outputs)}
            needed |= set(inputs.values())
            kept.append(replace(c, inputs=inputs, outputs=outputs))
        return kept[::-1]
