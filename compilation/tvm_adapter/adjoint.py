"""The adjoint of a list of calls: as a Relax function, through Relax's Gradient, and back as calls of our operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tvm import relax
from tvm.ir import GenericConst

from compilation.ops import REGISTRY, Site
from compilation.passes.rewrite import fresh
from compilation.program import Call, Program, Role, Tensor
from compilation.tvm_adapter.keep import REAL, keep_call, rebuild_call, relax_type
from compilation.tvm_adapter.relax_ops import PAIRING, PREFIX, gradient_op, make_call, read_call
from compilation.types import F32, Type

TAIL = "relax:"
Values = Mapping[str, Any]      # tensor -> Relax variable


def adjoint_calls(program: Program, calls: list[Call], wanted: list[str],
                  loss: Callable[[Values], Any] | None = None) -> tuple[list[Call], dict[str, str]]:
    """The calls that make the gradients of the wanted tensors, and the tensor of each gradient.

    calls: the forward ones, in order, all on the way from wanted tensors to the loss. loss: a Relax scalar made of the
    tensors that they read and make; by default program.loss. Gradient tensors, and regions, are added to `program`.
    """
    module, inputs = _to_relax(program, calls, loss or (lambda values: relax.op.reshape(values[program.loss], [])))
    variables = dict(zip(inputs, module["main"].params, strict=True))
    adjoint = relax.transform.Gradient("main", require_grads=[variables[w] for w in wanted])(module)["main_adjoint"]
    return _Reader(program, calls, inputs, adjoint).read(wanted)


def culprit(program: Program, calls: list[Call]) -> str:
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
            adjoint_calls(probe, probe.calls, floats)
        except Exception:  # this one
            return f"operation {c.op.removeprefix(TAIL)} in {c.where or 'the model'}"
    return "the gradient of the model"


def _to_relax(program: Program, calls: list[Call], loss: Callable[[Values], Any]) -> tuple[Any, list[str]]:
    """The Relax module of the calls, and the names of its function's parameters."""
    made = {t for c in calls for t in c.outputs.values()}
    read = [t for c in calls for t in c.inputs.values()] + [n for n, t in program.tensors.items() if t.role is Role.INPUT]
    inputs = [t for t in dict.fromkeys(read) if t not in made]
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
                    expr = make_call(program.op(c), {s: variables[t] for s, t in c.inputs.items()}, dict(c.attrs))
                variables[result] = builder.emit(expr, name_hint=f"call{i}")
            out = builder.emit_output(builder.emit(loss(variables)))
        builder.emit_func_output(out)
    return builder.get(), inputs


class _Reader:
    """Reads the adjoint function back as calls."""

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
        if name == PAIRING:
            return None                       # the value of it: only its gradient is of use
        if name.startswith(PREFIX):
            return self._own_call(expr)
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

    def _own_call(self, expr: Any) -> Any:
        op, args, attrs = read_call(expr)
        inputs = {s: self._value(a) for s, a in args.items()}
        inputs = {s: t for s, t in inputs.items() if t is not None}
        gradients = attrs.pop("_gradients", None)
        source = next((c for c in self.program.calls if self.program.has_op(c) and gradient_op(self.program.op(c)) is op
                       and all(inputs.get(s, t) == t for s, t in c.inputs.items())), None)
        where = source.where if source else ""
        outputs: dict[str, str] = {}
        if gradients is None:           # an operation that makes no gradients by itself
            shapes = {s: self.program.tensors[t].shape for s, t in inputs.items()}
            stem = next(iter(inputs.values()))
            where = where or next((w for t in inputs.values() if (w := self.places.get(t))), "")
            outputs = {s: self._new(f"{stem}.{s if len(op.outputs) > 1 else op.name}", made.shape)
                       for s, made in op.infer(Site(shapes, attrs)).items()}
            gradients = {}
        for s, shape in gradients.items():
            outputs[f"d_{s}"] = self._new(f"d.{source.inputs[s]}" if source else f"d.{op.name}.{s}", tuple(shape))
        call = Call(op.name, inputs, outputs, {**op.defaults(), **attrs}, where=where)
        if op.name not in REGISTRY:
            self.program.regions[op.name] = op
        self.calls.append(call)
        self.places |= dict.fromkeys(outputs.values(), where)
        return list(outputs.values()) if len(outputs) > 1 or op.outputs[0].name.startswith("d_") else outputs["y"]

    def _only_needed(self, needed: set[str]) -> list[Call]:
        """Drop outputs, inputs and calls that lead to no wanted gradient."""
        kept: list[Call] = []
        for c in reversed(self.calls):
            outputs = {s: t for s, t in c.outputs.items() if t in needed}
            if outputs and not any(s.startswith("d_") for s in outputs):
                outputs = dict(c.outputs)       # made together
            for t in set(c.outputs.values()) - set(outputs.values()):
                del self.program.tensors[t]
            if not outputs:
                continue
            rules = self.program.op(c).needed_for if self.program.has_op(c) else {}
            inputs = {s: t for s, t in c.inputs.items() if s not in rules or set(rules[s]) & set(outputs)}
            needed |= set(inputs.values())
            kept.append(replace(c, inputs=inputs, outputs=outputs))
        return kept[::-1]
