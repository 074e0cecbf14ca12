"""Every operation of the registry as a Relax operation `vt.<name>`, with type rule and gradient.

The gradient of `vt.<name>` is `vt.<name>_grad` (the registry says which), a tuple with one element for each
differentiable input slot; Relax's Gradient picks the elements on the way to a wanted gradient.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import tvm
from tvm import relax
from tvm.ir import _ffi_api
from tvm.relax.op.base import register_gradient

from compilation.errors import GradientError
from compilation.ops import REGISTRY
from compilation.ops.base import Op, Site

PREFIX = "vt."


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
        return relax.TupleType([relax.TensorType(shape, "float32") for shape in attrs["_gradients"].values()])
    shapes = {s: _shape(a) for s, a in args.items()}
    (shape, dtype), = op.infer(Site(shapes, attrs)).values()
    return relax.TensorType(list(shape), {"f32": "float32", "i32": "int32", "u8": "uint8"}[dtype])


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


@cache
def register_all() -> None:
    """Register the whole registry with Relax, once a process."""
    for op in REGISTRY.values():
        name = PREFIX + op.name
        _ffi_api.RegisterOp(name, (op.__doc__ or op.name).splitlines()[0])
        tvm.ir.register_op_attr(name, "FInferType", _infer)
        tvm.ir.register_op_attr(name, "FPurity", True)
        register_gradient(name, _gradient)
