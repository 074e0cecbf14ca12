"""Relax calls as plain data: what a `relax:` call of a Program carries until it is differentiated and lowered."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax

from compilation.program import Call
from compilation.types import F32, Type

RELAX = "relax"     # the attribute that holds the Relax call as JSON
REAL = F32.relax[0]     # what numbers are in Relax


def dtype_of(type_: Any) -> str:
    """The element type of a Relax tensor type, by its name in Relax."""
    return str(getattr(type_.dtype, "dtype", type_.dtype))


def relax_type(made: Type) -> relax.TensorType:
    """What a tensor of the Program is in Relax."""
    return relax.TensorType(list(made.shape), made.element.relax[0])


def keep_call(call: relax.Call) -> dict[str, str]:
    """The attributes of a `relax:` call."""
    return {RELAX: tvm.ir.save_json(call)}


def rebuild_call(call: Call, inputs: dict[str, Any]) -> relax.Call:
    """The Relax call again, on new arguments (slots as the importer named them: in<i> or in<i>.<j>)."""
    kept = tvm.ir.load_json(call.attrs[RELAX])
    args: list[Any] = []
    for i, a in enumerate(kept.args):
        parts = [inputs[s] for s in inputs if s.startswith(f"in{i}.")]
        if parts:
            types = a.ty.fields
            args.append(relax.Tuple([_as_type(p, t) for p, t in zip(parts, types, strict=True)]))
        else:
            args.append(_as_type(inputs[f"in{i}"], a.ty) if f"in{i}" in inputs else a)
    return relax.Call(kept.op, args, kept.attrs)


def _as_type(value: Any, wanted: Any) -> Any:
    """The value in the wanted type: the Program's tensors have no batch dimension, the Relax call's may, and the
    Program keeps a truth value in a byte."""
    have_shape, want_shape = ([int(v) for v in t.shape.values] for t in (value.ty, wanted))
    have, want = dtype_of(value.ty), dtype_of(wanted)
    if have != want and not (have.startswith("int") and want.startswith("int")):      # int32 does for any index
        value = relax.op.astype(value, want)
    return value if want_shape == have_shape else relax.op.reshape(value, want_shape)
