"""The forward Program under construction, and what turns symbolic values into its tensors and calls."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from compilation.errors import UnsupportedOperationError
from compilation.ops import REGISTRY
from compilation.ops.base import Site
from compilation.program import Call, Program, Role, Tensor
from compilation.tvm_adapter.keep import dtype_of, keep_call, relax_type
from compilation.tvm_adapter.rearrange import REARRANGEMENTS, arrangement, shape_of, spelled
from compilation.tvm_adapter.values import Concat, Constant, Many, Value, View, view_of
from compilation.types import FROM_RELAX, Type


def op_name(call: relax.Call) -> str:
    """The operation's name without Relax's prefix."""
    return call.op.name.removeprefix("relax.") if hasattr(call.op, "name") else str(call.op)


# Operations that spread a single number over their other arguments by themselves.
SPREADING = {"where", "add", "subtract", "multiply", "divide", "maximum", "minimum", "power", "greater", "greater_equal",
             "less", "less_equal", "equal", "not_equal"}


@dataclass(frozen=True)
class ImageTensors:
    """Names of the uint8 image and of its normalisation; empty when the input is float32."""

    pixels: str = ""
    scale: str = ""
    shift: str = ""

    @property
    def slots(self) -> dict[str, str]:
        return {"image": self.pixels, "scale": self.scale, "shift": self.shift}


class Builder:
    """Emits calls and tensors. `where` is the module path of the layer being imported.

    taken: names that belong to the model's parameters; a tensor of ours never gets one of them.
    """

    def __init__(self, name: str, taken: Collection[str] = ()) -> None:
        self.program = Program(name)
        self.producer: dict[str, Call] = {}     # tensor -> the call that makes it
        self.taken = frozenset(taken)
        self.where = ""
        self.layer = ""                         # the module path of the operation at hand, where it is known
        self.image = ImageTensors()
        self.float_image = ""                   # the normalised image, once something reads it
        self.made: dict[Any, str] = {}          # rearrangement (base, shape, source indices) -> tensor that holds it
        self.constants: dict[Any, str] = {}     # shape, type and bytes -> CONSTANT tensor

    @property
    def place(self) -> str:
        """The module path of what is being imported, for messages."""
        return self.layer or self.where or "the model's top level"

    # -- tensors and calls ----------------------------------------------------------------------------
    def _tensor(self, name: str, made: Type, role: Role = Role.ACTIVATION) -> str:
        if 0 in made.shape:
            raise UnsupportedOperationError(f"an operation in {self.place} makes a tensor without elements {made.shape}: "
                                            "the device has none; leave the operation out")
        stem, n = name, 1
        while name in self.program.tensors or name in self.taken:
            n += 1
            name = f"{stem}.{n}"
        return self.program.add(Tensor(name, made, role, source=self.where)).name

    def _emit(self, op: str, inputs: dict[str, str], attrs: dict[str, Any] | None = None, hint: str = "") -> str:
        """Append a registry call with one output `y`; returns the tensor's name."""
        attrs = REGISTRY[op].defaults() | (attrs or {})
        site = Site({s: self.program.tensors[t].shape for s, t in inputs.items()}, attrs)
        out = self._tensor(hint or (f"{self.where}.{op}" if self.where else op), REGISTRY[op].infer(site)["y"])
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
        """The tensor behind an activation, as a (rows, features) matrix; None for a parameter or a constant."""
        if isinstance(value, Concat):
            value = self._settle(value)
        if not isinstance(value, View) or value.parameter:
            return None
        name = self._as_input(value)
        want = (math.prod(value.shape[:-1]), value.shape[-1]) if value.shape else (1, 1)
        return name if self.program.tensors[name].shape == want else self._reshape(name, want)

    def _reshape(self, tensor: str, shape: tuple[int, ...], attrs: Mapping[str, Any] | None = None) -> str:
        out = self._tensor(f"{tensor}.{'stopped' if attrs else 'view'}", self.program.tensors[tensor].type.shaped(shape))
        return self._append(Call("reshape", {"x": tensor}, {"y": out}, attrs or {}, where=self.where))

    def _constant(self, value: np.ndarray) -> str:
        """A CONSTANT tensor with these values; the same values are kept once."""
        element = FROM_RELAX.get(str(value.dtype))
        if element is None:
            raise UnsupportedOperationError(f"a constant in {self.place} is {value.dtype}: the device computes in float32")
        key = (value.shape, element, value.tobytes())
        if key not in self.constants:
            self.constants[key] = self._tensor(f"{self.where}.constant" if self.where else "constant",
                                               Type(value.shape or (1,), element), Role.CONSTANT)
            self.program.constants[self.constants[key]] = tuple(value.reshape(-1).tolist())
        return self.constants[key]

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

    def _pick_columns(self, value: View) -> str | None:
        """A view that is a window of the columns of a (rows, features) tensor, in order -> columns."""
        t = self.program.tensors[value.base]
        if len(t.shape) != 2 or not value.index.size or value.index.size % t.shape[0]:
            return None
        n, width = t.shape
        flat = value.index.reshape(n, -1)
        first, count = int(flat[0, 0]), flat.shape[1]
        if not (flat == np.arange(n)[:, None] * width + first + np.arange(count)).all():
            return None
        return self._cut_columns(value.base, first, count)

    def _cut_columns(self, tensor: str, first: int, count: int) -> str:
        key = (tensor, first, count)
        if key not in self.made:
            self.made[key] = self._emit("columns", {"x": tensor}, {"start": first, "count": count},
                                        hint=f"{tensor}[{first}:{first + count}]")
        return self.made[key]

    def _arranged(self, value: Any) -> View | None:
        """An activation as an arrangement of all elements of a (rows, features) tensor, each once: of the tensor behind it
        or of a window of that one's columns, cut out. None where it is something else."""
        value = self._settle(value)
        if not isinstance(value, View) or value.parameter or value.base == self.image.pixels:
            return None
        shape = self.program.tensors[value.base].shape
        if len(shape) != 2 or not value.index.size or value.index.size % shape[0]:
            return None
        (n, width), count = shape, value.index.size // shape[0]
        first = int((value.index % width).min())
        within = value.index // width * count + value.index % width - first
        if count > width or (np.sort(within, axis=None) != np.arange(n * count)).any() \
                or (value.index % width - first).max() >= count:
            return None
        return value if count == width else arrangement(self._cut_columns(value.base, first, count), (n, count), within)

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
        """Turn a pending concatenation into a tensor."""
        if isinstance(value, Concat):
            if len(value.items) > 1 and value.sole:
                self._take_prefix(value)
            if len(value.items) == 1:
                return value.items[0]
        if isinstance(value, Concat) and value.origin:
            return self._tail(op_name(value.origin[0]), *value.origin)
        return value

    def _take_prefix(self, value: Concat) -> None:
        """A parameter in front of the tokens of a patch embedding becomes its prefix."""
        *prefix, last = value.items
        producer = self.producer.get(last.base) if isinstance(last, View) and last.plain else None
        names = [self._parameter(p) for p in prefix]
        if producer is not None and producer.op == "patch_embed" and not {"prefix", "pos"} & producer.inputs.keys() \
                and len(names) == 1 and names[0] is not None and value.axis == 1:
            tensor = self.program.tensors[last.base]
            rows = value.shape[1] - tensor.shape[0]
            self.program.put_shape(names[0], (rows, tensor.shape[1]))
            self._give(producer, "prefix", names[0])
            self.program.put_shape(last.base, (value.shape[1], tensor.shape[1]))
            value.items = [self._as(last.base, value.shape)]

    # -- rearrangements and the long tail ---------------------------------------------------------------
    def _rearrange(self, name: str, call: relax.Call, args: list[Any]) -> Value | None:
        x = args[0] if args else None
        if name not in REARRANGEMENTS or (name == "take" and not isinstance(call.args[1], GenericConst)):
            return None
        if isinstance(x, Concat):
            x = self._settle(x)
        if isinstance(x, Constant):
            moved = REARRANGEMENTS[name](np.arange(x.value.size).reshape(x.shape), call)
            whole = moved if isinstance(moved, list) else [moved]
            values = [Constant(x.value.reshape(-1)[m]) for m in whole]
            return Many(list(values)) if isinstance(moved, list) else values[0]
        if not isinstance(x, View):
            return None
        moved = REARRANGEMENTS[name](x.index, call)
        if isinstance(moved, list):
            return Many([View(x.base, m, x.parameter, (call, x, i)) for i, m in enumerate(moved)])
        return View(x.base, moved, x.parameter, (call, x, None))

    def _materialise(self, value: Any) -> str:
        """The tensor a value stands for, with exactly the value's elements in order."""
        value = self._settle(value)
        if isinstance(value, Constant):
            return self._constant(value.value)
        if not isinstance(value, View):
            raise UnsupportedOperationError(f"an operation in {self.place} is given several tensors at once where one is "
                                            "expected: replace it by operations on single tensors")
        if value.covers(math.prod(self.program.tensors[value.base].shape)):
            return value.base
        if not value.parameter and (picked := self._pick_row(value) or self._pick_columns(value)):
            return picked
        arranged = self._arranged(value)
        if arranged is not None and arranged.base != value.base:
            return self._materialise(arranged)
        key = (value.base, value.index.shape, value.index.tobytes())
        if key not in self.made:
            assert value.moved is not None
            call, source, part = value.moved
            self.made[key] = self._move(call, source, part)
        return self.made[key]

    def _move(self, call: relax.Call, source: View, part: int | None) -> str:
        """A rearrangement that must be done: as calls of the long tail."""
        variable = relax.Var("x", relax_type(Type(tuple(source.shape))))
        builder = relax.BlockBuilder()
        with builder.function("main", [variable]):
            with builder.dataflow():
                out = builder.emit_output(builder.emit(spelled(call, variable, part)))
            builder.emit_func_output(out)
        value: Value = source
        for block in builder.get()["main"].body.blocks:
            for b in block.bindings:
                if isinstance(b.value, relax.Call):
                    value = self._tail(op_name(b.value), b.value, [value])
        assert isinstance(value, View)
        return value.base

    def _tail(self, name: str, call: relax.Call, args: list[Any]) -> Value:
        """Keep a Relax call as it is; the adapter differentiates and legalises it later."""
        if not hasattr(call.ty, "shape"):
            raise UnsupportedOperationError(f"operation {name} in {self.place} returns several tensors: replace it by "
                                            "operations with one result")
        element = FROM_RELAX.get(dtype_of(call.ty))
        if element is None:
            raise UnsupportedOperationError(f"operation {name} in {self.place} makes {dtype_of(call.ty)} values: the device "
                                            "computes in float32")
        inputs: dict[str, str] = {}
        given = [relax.const(a.value.numpy().astype(np.int32)) if isinstance(a, GenericConst)
                 and dtype_of(a.ty) == "int64" else a
                 for a in call.args]
        for i, a in enumerate(args):
            if isinstance(a, Many) and all(isinstance(v, View | Constant | Concat) for v in a.items):
                inputs |= {f"in{i}.{j}": self._as_input(item) for j, item in enumerate(a.items)}
            elif isinstance(a, Constant) and a.uniform and (a.value.size == 1 or name in SPREADING):
                given[i] = relax.const(a.value.reshape(-1)[0], str(a.value.dtype))
            elif isinstance(a, View | Constant | Concat):
                inputs[f"in{i}"] = self._as_input(a)
        out = self._tensor(f"{self.where}.{name}" if self.where else name, Type(shape_of(call), element))
        kept = relax.Call(call.op, given, call.attrs)
        self._append(Call(f"relax:{name}", inputs, {"y": out}, keep_call(kept), where=self.layer or self.where))
        return self._as(out, shape_of(call))

    def _as_input(self, value: Any) -> str:
        """The tensor of an argument of the long tail, which reads floats and no pixels."""
        on_pixels = isinstance(value, View) and value.base == self.image.pixels
        return self._materialise(self._on(self._float_image(), value) if on_pixels else value)

    def _on(self, base: str, value: View) -> View:
        """The same elements in the same arrangement of another tensor."""
        moved = value.moved and (value.moved[0], self._on(base, value.moved[1]), value.moved[2])
        return View(base, value.index, moved=moved)

    def _float_image(self) -> str:
        if not self.float_image:
            self.float_image = self._emit("normalize_image", self.image.slots, hint="image.float")
        return self.float_image
