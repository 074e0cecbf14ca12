"""Every operation of the registry as a Relax operation `vt.<name>`, with type rule and gradient.

The gradient of `vt.<name>` is `vt.<name>_grad` (the registry says which), a tuple with one element for each
differentiable input slot; Relax's Gradient picks the elements on the way to a wanted gradient.
"""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import tvm
from tvm import relax
from tvm.ir import _ffi_api
from tvm.relax.op.base import register_gradient

from compilation.errors import GradientError
from compilation.ops import REGISTRY
from compilation.ops.base import Op, Site
from compilation.tvm_adapter.keep import REAL, relax_type
from compilation.types import Type

PREFIX = "vt."
STOP_GRADIENT = "vt.stop_gradient"     # only on the way in: the importer makes a renaming of it


def stop_gradient(x: Any) -> relax.Call:
    """x itself, for whoever computes; the end of the way, for whoever differentiates."""
    register_all()
    return relax.Call(tvm.ir.Op.get(STOP_GRADIENT), [x])


def make_call(op: Op, args: dict[str, Any], attrs: dict[str, Any]) -> relax.Call:
    """A Relax call of a registry operation; absent optional slots are simply left out."""
    register_all()
    spec = json.dumps({"slots": list(args), "attrs": attrs})
    return relax.Call(tvm.ir.Op.get(PREFIX + op.name), list(args.values()),
                      tvm.ir.make_node("ir.DictAttrs", spec=spec))


def read_call(call: relax.Call) -> tuple[Op, dict[str, Any], dict[str, Any]]:
    """(operation, slot -> argument, attributes) of a call made by `make_call`."""
    spec = json.loads(str(call.attrs["spec"]))
    return REGISTRY[call.op.name.removeprefix(PREFIX)], dict(zip(spec["slots"], call.args, strict=True)), spec["attrs"]


def gradient_slots(op: Op, slots: Any) -> list[str]:
    """The input slots of a forward call that its gradient operation can differentiate."""
    if op.gradient is None:
        return []
    outputs = {s.name for s in REGISTRY[op.gradient].outputs}
    return [s for s in slots if f"d_{s}" in outputs]


def _shape(expr: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in expr.ty.shape.values)


def _infer(call: relax.Call, _: Any) -> Any:
    op, args, attrs = read_call(call)
    if "_gradients" in attrs:
        return relax.TupleType([relax_type(Type(tuple(map(int, shape)))) for shape in attrs["_gradients"].values()])
    shapes = {s: _shape(a) for s, a in args.items()}
    made, = op.infer(Site(shapes, attrs)).values()
    return relax_type(made)


def _gradient(_: Any, call: relax.Call, dy: Any, builder: Any) -> list[Any]:
    op, args, attrs = read_call(call)
    if op.gradient is None:
        raise GradientError(f"operation {op.name} has no gradient: freeze what lies below it, or give it one "
                            "(docs/adding-an-op.md)")
    grad = REGISTRY[op.gradient]
    wanted = gradient_slots(op, args)
    known = {s.name for s in grad.inputs}
    inputs = {s: a for s, a in args.items() if s in known}
    if "dy" in known:
        inputs["dy"] = dy
    kept = {k: v for k, v in attrs.items() if k in grad.attrs}
    extra = {k: _shape(args["x"])[0] for k in ("n",) if k in grad.attrs and "x" in args}
    gradients = {s: list(_shape(args[s])) for s in wanted}
    made = builder.emit(make_call(grad, inputs, {**kept, **extra, "_gradients": gradients}))
    return [builder.emit(relax.TupleGetItem(made, wanted.index(s))) if s in wanted
            else relax.op.grad.no_grad(a) for s, a in args.items()]


# -- gradients of Relax's own operations ------------------------------------------------------------------
def _concat_gradient(_: Any, call: relax.Call, dy: Any, builder: Any) -> list[Any]:
    """Each part gets its slice. (Relax's rule is a split, one call with several results.)"""
    axis, parts, at = int(call.attrs.axis), [], 0
    for part in call.args[0].ty.fields:
        size = int(part.shape.values[axis])
        parts.append(relax.op.strided_slice(dy, [axis], [at], [at + size]))
        at += size
    return [relax.Tuple(parts)]


def _strided_slice_gradient(_: Any, call: relax.Call, dy: Any, builder: Any) -> list[Any]:
    """Zeros around the slice."""
    axes, begin, end, *rest = ([int(getattr(v, "value", v)) for v in a.fields] for a in call.args[1:])
    steps = rest[0] if rest else [1] * len(axes)
    shape, have = _shape(call.args[0]), list(_shape(dy))
    widths = [(0, 0)] * len(shape)
    for a, b, e, step in zip((a % len(shape) for a in axes), begin, end, steps, strict=True):
        start, _, _ = slice(b, e, step).indices(shape[a])
        if step < 0:
            raise GradientError("a slice that runs backwards has no gradient here: use flip, or freeze what lies below it")
        if step > 1:                         # step - 1 zeros behind each element, but the last
            spread = relax.op.nn.pad(relax.op.reshape(dy, [*have[:a + 1], 1, *have[a + 1:]]),
                                     [0, 0] * (a + 1) + [0, step - 1] + [0, 0] * (len(have) - a - 1))
            have[a] = have[a] * step - (step - 1)
            dy = relax.op.strided_slice(relax.op.reshape(spread, [*have[:a], have[a] + step - 1, *have[a + 1:]]),
                                        [a], [0], [have[a]])
        widths[a] = (start, shape[a] - start - have[a])
    return [relax.op.nn.pad(dy, [w for pair in widths for w in pair]), *map(relax.op.grad.no_grad, call.args[1:])]


def _pad_gradient(_: Any, call: relax.Call, dy: Any, builder: Any) -> list[Any]:
    """What was there before."""
    if str(call.attrs.pad_mode) != "constant":
        raise GradientError(f"padding by {call.attrs.pad_mode} has no gradient here: pad with a constant, or freeze what "
                            "lies below it")
    shape = _shape(call.args[0])
    before = [int(v) for v in call.attrs.pad_width][::2]
    return [relax.op.strided_slice(dy, list(range(len(shape))), before, [b + n for b, n in zip(before, shape, strict=True)])]


def _tile_gradient(_: Any, call: relax.Call, dy: Any, builder: Any) -> list[Any]:
    """The sum over the copies."""
    shape, repeats = _shape(call.args[0]), [int(v) for v in call.attrs.repeats]
    rank = max(len(shape), len(repeats))
    shape, repeats = (1,) * (rank - len(shape)) + shape, [1] * (rank - len(repeats)) + repeats
    split = relax.op.reshape(dy, [v for pair in zip(repeats, shape, strict=True) for v in pair])
    return [relax.op.reshape(relax.op.sum(split, list(range(0, 2 * rank, 2))), list(_shape(call.args[0])))]


def _erf_gradient(_: Any, call: relax.Call, dy: Any, builder: Any) -> list[Any]:
    """2 / sqrt(pi) e^(-x^2)."""
    x, = call.args
    slope = relax.op.exp(relax.op.negative(relax.op.multiply(x, x)))
    return [relax.op.multiply(relax.op.multiply(dy, slope), relax.const(2.0 / math.sqrt(math.pi), REAL))]


def _no_gradient(_: Any, call: relax.Call, dy: Any, builder: Any) -> list[Any]:
    """Constant wherever it is smooth: no gradient, as in PyTorch."""
    return [relax.op.grad.no_grad(a) for a in call.args]


RULES = {"relax.concat": _concat_gradient, "relax.strided_slice": _strided_slice_gradient, "relax.nn.pad": _pad_gradient,
         "relax.tile": _tile_gradient, "relax.erf": _erf_gradient,
         "relax.flip": lambda _, call, dy, builder: [relax.op.flip(dy, int(call.attrs.axis))],
         **{f"relax.{name}": _no_gradient for name in ("floor", "ceil", "round", "trunc", "sign", "argmax", "argmin",
                                                       "floor_divide", "logical_and", "logical_or", "logical_not")}}


@cache
def register_all() -> None:
    """Register the whole registry with Relax, once a process, and the gradients that Relax lacks."""
    _ffi_api.RegisterOp(STOP_GRADIENT, "Where PyTorch's gradient ends.")
    tvm.ir.register_op_attr(STOP_GRADIENT, "FInferType", lambda call, _: call.args[0].ty)
    tvm.ir.register_op_attr(STOP_GRADIENT, "FPurity", True)
    for name, rule in RULES.items():
        register_gradient(name, rule, level=11)      # above Relax's own, at 10
    for op in REGISTRY.values():
        name = PREFIX + op.name
        _ffi_api.RegisterOp(name, (op.__doc__ or op.name).splitlines()[0])
        tvm.ir.register_op_attr(name, "FInferType", _infer)
        tvm.ir.register_op_attr(name, "FPurity", True)
        register_gradient(name, _gradient)
