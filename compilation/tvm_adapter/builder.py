"""The forward Program under construction, and what turns symbolic values into its tensors and calls."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from tvm import relax

from compilation.errors import UnsupportedOperationError
from compilation.ops import REGISTRY
from compilation.ops.base import Site
from compilation.program import Call, Program, Role, Tensor
from compilation.tvm_adapter.keep import keep_call
from compilation.tvm_adapter.rearrange import REARRANGEMENTS, shape_of
from compilation.tvm_adapter.values import Concat, GramProduct, Many, Value, View, view_of


def op_name(call: relax.Call) -> str:
    """The operation's name without Relax's prefix."""
    return call.op.name.removeprefix("relax.") if hasattr(call.op, "name") else str(call.op)


class Builder:
    """Emits calls and tensors. `where` is the module path of the layer being imported."""

    def __init__(self, name: str) -> None:
        self.program = Program(name)
        self.producer: dict[str, Call] = {}     # tensor -> the call that makes it
        self.where = ""

    # -- tensors and calls ----------------------------------------------------------------------------
    def _tensor(self, name: str, shape: tuple[int, ...], dtype: str = "f32", role: Role = Role.ACTIVATION) -> str:
        stem, n = name, 1
        while name in self.program.tensors:
            n += 1
            name = f"{stem}.{n}"
        return self.program.add(Tensor(name, shape, dtype, role, source=self.where)).name

    def _emit(self, op: str, inputs: dict[str, str], attrs: dict[str, Any] | None = None, hint: str = "") -> str:
        """Append a registry call with one output `y`; returns the tensor's name."""
        attrs = REGISTRY[op].defaults() | (attrs or {})
        site = Site({s: self.program.tensors[t].shape for s, t in inputs.items()}, attrs)
        shape, dtype = REGISTRY[op].infer(site)["y"]
        out = self._tensor(hint or (f"{self.where}.{op}" if self.where else op), shape, dtype)
        return self._append(Call(op, inputs, {"y": out}, attrs, where=self.where))

    def _append(self, call: Call) -> str:
        """The call at the end of the Program; returns its result."""
        self.program.calls.append(call)
        self.producer |= dict.fromkeys(call.outputs.values(), call)
        return call.outputs["y"]

    def _give(self, call: Call, slot: str, tensor: str) -> None:
        """One more input for a call that stands in the Program already."""
        more = replace(call, inputs={**call.inputs, slot: tensor})
        self.program.replace_call(call, more)
        self.producer |= dict.fromkeys(more.outputs.values(), more)

    def _as(self, tensor: str, shape: tuple[int, ...]) -> View:
        return view_of(tensor, shape)

    def _rows(self, value: Any) -> str | None:
        """The tensor behind a plain activation view, as a (rows, features) matrix; None if it is anything else."""
        if not isinstance(value, View):
            if isinstance(value, GramProduct | Concat):
                return self._rows(self._settle(value))
            return None
        if value.parameter or value.base == "image":
            return None
        if not value.covers(math.prod(self.program.tensors[value.base].shape)):
            name = self._pick_row(value)
            if name is None:
                return None
            value = self._as(name, value.shape)
        t = self.program.tensors[value.base]
        want = (math.prod(value.shape[:-1]), value.shape[-1]) if len(value.shape) > 1 else (1, *value.shape)
        if len(value.shape) > 2 and value.shape[0] != 1:
            return None
        if t.shape == want:
            return value.base
        return self._reshape(value.base, want)

    def _reshape(self, tensor: str, shape: tuple[int, ...]) -> str:
        out = self._tensor(f"{tensor}.view", shape)
        return self._append(Call("reshape", {"x": tensor}, {"y": out}, where=self.where))

    def _pick_row(self, value: View) -> str | None:
        """A view that is one whole row of a (rows, features) tensor -> take_row."""
        t = self.program.tensors[value.base]
        if len(t.shape) != 2 or value.index.size != t.shape[1]:
            return None
        flat = value.index.reshape(-1)
        row, rest = divmod(int(flat[0]), t.shape[1])
        if rest or not (flat == flat[0] + np.arange(flat.size)).all():
            return None
        return self._emit("take_row", {"x": value.base}, {"row": row})

    def _parameter(self, value: Any, shape: tuple[int, ...] | None = None) -> str | None:
        whole = isinstance(value, View) and value.parameter and value.plain \
            and value.index.size == math.prod(self.program.tensors[value.base].shape) \
            and (shape is None or math.prod(shape) == value.index.size)
        return value.base if whole else None

    def _vector(self, value: Any, features: int) -> str | None:
        """A parameter that broadcasts along the last axis: (features,), (1, 1, features) ..."""
        name = self._parameter(value)
        return name if name and value.index.size == features and value.shape[-1] == features else None

    def _settle(self, value: Any) -> Value:
        """Turn a pending concatenation or Gram product into a tensor."""
        if isinstance(value, Concat):
            *prefix, last = value.items
            producer = self.producer.get(last.base) if isinstance(last, View) and last.plain else None
            names = [self._parameter(p) for p in prefix]
            if producer is not None and producer.op == "patch_embed" and not {"prefix", "pos"} & producer.inputs.keys() \
                    and len(names) == 1 and names[0] is not None and value.axis == 1:
                tensor = self.program.tensors[last.base]
                rows = value.shape[1] - tensor.shape[0]
                self.program.put(names[0], shape=(rows, tensor.shape[1]))
                self._give(producer, "prefix", names[0])
                self.program.put(last.base, shape=(value.shape[1], tensor.shape[1]))
                value.items = [self._as(last.base, value.shape)]
                return self._as(last.base, value.shape)
            if len(value.items) == 1:
                return value.items[0]
        if isinstance(value, Concat | GramProduct) and value.origin:
            return self._tail(op_name(value.origin[0]), *value.origin)
        return value

    # -- rearrangements and the long tail ---------------------------------------------------------------
    def _rearrange(self, name: str, call: relax.Call, args: list[Any]) -> Value | None:
        x = args[0] if args else None
        if isinstance(x, Many) and name != "concat":
            return None
        if isinstance(x, Concat) and name in REARRANGEMENTS:
            x = self._settle(x)
        if not isinstance(x, View) or name not in REARRANGEMENTS:
            return None
        moved = REARRANGEMENTS[name](x.index, call)
        origin = (call, [x, *args[1:]])
        if isinstance(moved, list):
            return Many([View(x.base, m, x.parameter, None) for m in moved])
        return View(x.base, moved, x.parameter, origin)

    def _materialise(self, value: Any) -> str:
        """The tensor a value stands for, with exactly the value's elements in order."""
        value = self._settle(value)
        if isinstance(value, View):
            if value.covers(math.prod(self.program.tensors[value.base].shape)):
                return value.base
            if not value.parameter and (row := self._pick_row(value)):
                return row
            if value.origin:
                made = self._tail(op_name(value.origin[0]), *value.origin)
                assert isinstance(made, View)
                return made.base
        raise UnsupportedOperationError(
            f"a rearrangement in {self.where or 'the model'} cannot be compiled: replace split/unbind there by slicing")

    def _tail(self, name: str, call: relax.Call, args: list[Any]) -> Value:
        """Keep a Relax call as it is; the adapter differentiates and legalises it later."""
        inputs: dict[str, str] = {}
        for i, a in enumerate(args):
            if isinstance(a, Many):
                for j, item in enumerate(a.items):
                    inputs[f"in{i}.{j}"] = self._materialise(item)
            elif isinstance(a, View | Concat | GramProduct):
                inputs[f"in{i}"] = self._materialise(a)
        if not hasattr(call.ty, "shape"):
            raise UnsupportedOperationError(f"operation {name} in {self.where or 'the model'} returns several tensors: "
                                            "replace it by operations with one result")
        if any(t == "image" for t in inputs.values()):
            inputs = {k: self._float_image() if t == "image" else t for k, t in inputs.items()}
        out = self._tensor(f"{self.where}.{name}" if self.where else name, shape_of(call))
        self._append(Call(f"relax:{name}", inputs, {"y": out}, keep_call(call), where=self.where))
        return self._as(out, shape_of(call))

    def _float_image(self) -> str:
        if "image.float" not in self.program.tensors:
            if "normalize_image" not in REGISTRY:
                raise UnsupportedOperationError(f"the operation in {self.where or 'the model'} reads the image directly: "
                                                "only a patch embedding can")
            return self._emit("normalize_image",
                              {"image": "image", "scale": "image.scale", "shift": "image.shift"}, hint="image.float")
        return "image.float"
