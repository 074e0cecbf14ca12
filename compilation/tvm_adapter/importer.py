"""torch.export -> Relax -> the forward Program, in the registry's operations.

Relax spells one idea in many ways (a linear is permute + matmul + add, attention is fifteen rearrangements
around `nn.attention`). The importer walks the Relax bindings once, keeps every rearrangement symbolic
(`values.View`), and emits a registry operation as soon as it is complete. What the registry has no operation
for is kept as a Relax call (`relax:<name>`) and goes through legalised TIR later.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.frontend.torch import from_exported_program

from compilation.capture import Exported
from compilation.errors import CaptureError, UnsupportedOperationError
from compilation.ops import REGISTRY
from compilation.ops.base import Site
from compilation.program import Call, Program, Role, Tensor
from compilation.tvm_adapter.values import Concat, Constant, GramProduct, Many, View, view_of

Value = View | Constant | Many | Concat | GramProduct


def import_model(exported: Exported, name: str) -> Program:
    """The forward pass as a Program: INPUT tensors, one tensor a parameter, calls; `meta["logits"]` is the result.

    Raises UnsupportedOperationError, naming the operation and its module path.
    """
    try:
        module = from_exported_program(exported.program, keep_params_as_input=True,
                                       unwrap_unit_return_tuple=True, run_ep_decomposition=False)
    except Exception as error:
        raise UnsupportedOperationError(_name_the_unsupported(exported, error)) from error
    module, _ = relax.frontend.detach_params(module)
    return Importer(exported, module["main"], name).run()


def _name_the_unsupported(exported: Exported, error: Exception) -> str:
    text = str(error)
    for node in exported.program.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "__name__", str(node.target)) in text:
            path = exported.module_paths.get(node.name) or "the model's top level"
            return (f"operation {node.target} in {path} has no Relax importer: replace it by supported operations "
                    f"or keep it out of the compiled model")
    return f"the model cannot be imported: {text.strip().splitlines()[-1]}"


def _op_name(call: relax.Call) -> str:
    return call.op.name.removeprefix("relax.") if hasattr(call.op, "name") else str(call.op)


def _shape(expr: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in expr.ty.shape.values)


class Importer:
    """One walk over the bindings of a Relax function."""

    def __init__(self, exported: Exported, function: relax.Function, name: str) -> None:
        self.exported, self.function = exported, function
        self.program = Program(name)
        self.values: dict[Any, Value] = {}
        self.uses: dict[Any, int] = {}
        self.producer: dict[str, Call] = {}     # tensor -> the call that makes it
        self.tail: dict[str, relax.Call] = {}   # result tensor of a "relax:" call -> the Relax call
        self.where = ""
        self.handlers: dict[str, Callable[[relax.Call, list[Value]], Value | None]] = {
            "matmul": self.matmul, "add": self.add, "multiply": self.multiply, "divide": self.divide,
            "nn.layer_norm": self.layer_norm, "nn.gelu": self.gelu, "nn.gelu_tanh": self.gelu_tanh,
            "nn.relu": self.relu, "nn.attention": self.attention, "nn.conv2d": self.conv2d,
            "concat": self.concat, "mean": self.mean,
        }

    # -- the walk -----------------------------------------------------------------------------------
    def run(self) -> Program:
        spec = self.exported.spec
        first, *params = self.function.params
        if len(params) != len(self.exported.argument_names):
            raise CaptureError("the imported function's parameters do not match the exported model's: internal error")
        if spec.is_image:
            c, h, w = spec.shape
            self._tensor("image", (h, w, c), "u8", Role.INPUT)
            self._tensor("image.scale", (c,), "f32", Role.CONSTANT)
            self._tensor("image.shift", (c,), "f32", Role.CONSTANT)
            self.program.meta["constants"] = {"image.scale": np.asarray(spec.scale).tolist(),
                                              "image.shift": np.asarray(spec.shift).tolist()}
        else:
            self._tensor("input", (1, *spec.shape), "f32", Role.INPUT)
        self.values[first] = view_of("image" if spec.is_image else "input", (1, *spec.shape))
        for var, parameter in zip(params, self.exported.argument_names, strict=True):
            shape = _shape(var)
            self.program.add(Tensor(parameter, shape, "f32", Role.CONSTANT, source=parameter))
            self.values[var] = view_of(parameter, shape, parameter=True)
        bindings = [b for block in self.function.body.blocks for b in block.bindings]
        for b in bindings:
            relax.analysis.post_order_visit(b.value, self._count_use)
        self._count_use(self.function.body.body)
        for b in bindings:
            self.values[b.var] = self._bind(b.value)
        self.program.meta["logits"] = self._materialise(self.values[self.function.body.body])
        self._drop_unused_parameters()
        self.program.meta["tail"] = self.tail
        return self.program

    def _count_use(self, expr: Any) -> None:
        if isinstance(expr, relax.Var):
            self.uses[expr] = self.uses.get(expr, 0) + 1

    def _bind(self, expr: Any) -> Value:
        if isinstance(expr, relax.Call):
            args = [self._arg(a) for a in expr.args]
            self._locate(args)
            name = _op_name(expr)
            handler = self.handlers.get(name)
            value = handler(expr, args) if handler else None
            if value is None:
                value = self._rearrange(name, expr, args)
            return value if value is not None else self._tail(name, expr, args)
        return self._arg(expr)

    def _arg(self, expr: Any) -> Any:
        if isinstance(expr, relax.Var):
            return self.values[expr]
        if isinstance(expr, GenericConst):
            return Constant(np.asarray(expr.value.numpy()))
        if isinstance(expr, relax.Tuple):
            return Many([self._arg(f) for f in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            many = self._arg(expr.tuple_value)
            return many.items[expr.index]
        return expr                              # ShapeExpr, PrimValue ...

    def _locate(self, args: list[Any]) -> None:
        for a in args:
            if isinstance(a, View) and a.parameter and "." in a.base:
                self.where = a.base.rsplit(".", 1)[0]

    # -- building blocks ------------------------------------------------------------------------------
    def _tensor(self, name: str, shape: tuple[int, ...], dtype: str = "f32", role: Role = Role.ACTIVATION) -> str:
        stem, n = name, 1
        while name in self.program.tensors:
            n += 1
            name = f"{stem}.{n}"
        return self.program.add(Tensor(name, shape, dtype, role, source=self.where)).name

    def _emit(self, op: str, inputs: dict[str, str], attrs: dict[str, Any] | None = None, hint: str = "") -> str:
        """Append a registry call with one output `y`; returns the tensor's name."""
        attrs = {k: default for k, (_, default) in REGISTRY[op].attrs.items()} | (attrs or {})
        site = Site({s: self.program.tensors[t].shape for s, t in inputs.items()}, attrs)
        shape, dtype = REGISTRY[op].infer(site)["y"]
        out = self._tensor(hint or (f"{self.where}.{op}" if self.where else op), shape, dtype)
        call = Call(op, inputs, {"y": out}, attrs, where=self.where)
        self.program.calls.append(call)
        self.producer[out] = call
        return out

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
        call = Call("reshape", {"x": tensor}, {"y": out}, {}, where=self.where)
        self.program.calls.append(call)
        self.producer[out] = call
        return out

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
        if isinstance(value, View) and value.parameter and value.plain \
                and value.index.size == math.prod(self.program.tensors[value.base].shape):
            if shape is None or math.prod(shape) == value.index.size:
                return value.base
        return None

    def _vector(self, value: Any, features: int) -> str | None:
        """A parameter that broadcasts along the last axis: (features,), (1, 1, features) ..."""
        name = self._parameter(value)
        return name if name and value.index.size == features and value.shape[-1] == features else None

    # -- operations -----------------------------------------------------------------------------------
    def matmul(self, call: relax.Call, args: list[Value]) -> Value | None:
        x, w = args
        if isinstance(x, View) and isinstance(w, View) and w.parameter and not x.parameter:
            p = self.program.tensors[w.base]
            if len(p.shape) == 2 and w.shape == p.shape[::-1]                     and (w.index == np.arange(w.index.size).reshape(p.shape).T).all() \
                    and (rows := self._rows(x)) is not None:
                y = self._emit("linear", {"x": rows, "w": w.base}, hint=self.where)
                return self._as(y, _shape(call))
        return self._gram_step(call, x, w)

    def _gram_step(self, call: relax.Call, x: Any, w: Any) -> Value | None:
        origin = (call, [x, w])
        if isinstance(x, View) and not x.parameter and isinstance(w, View) and w.parameter and w.plain:
            base = self.program.tensors[x.base]
            if len(base.shape) == 2 and x.shape == (1, *base.shape[::-1]) \
                    and (x.index[0] == np.arange(x.index.size).reshape(base.shape).T).all():
                return GramProduct(x.base, "xta", [w.base], _shape(call), origin)
        if isinstance(x, GramProduct) and x.stage in ("xta", "xxta") and isinstance(w, View) and w.parameter and w.plain:
            stage = "xtab" if x.stage == "xta" else "t"
            return GramProduct(x.x, stage, [*x.factors, w.base], _shape(call), origin)
        if isinstance(w, GramProduct) and isinstance(x, View) and x.plain and x.base == w.x and w.stage in ("xta", "xtab"):
            return GramProduct(w.x, "xxta" if w.stage == "xta" else "t", w.factors, _shape(call), origin)
        return None

    def _scaled(self, call: relax.Call, x: Any, factor: float) -> Value | None:
        if isinstance(x, GramProduct) and x.stage == "t":
            features = self.program.tensors[x.x].shape[1]
            y = self._emit("gram", {"x": x.x, "a": x.factors[0], "b": x.factors[1]}, hint=f"{self.where}.gram")
            if not math.isclose(factor * features, 1.0, rel_tol=1e-6):
                y = self._emit("mul_const", {"x": y}, {"value": factor * features})
            return self._as(y, _shape(call))
        if (rows := self._rows(x)) is not None:
            return self._as(self._emit("mul_const", {"x": rows}, {"value": factor}), _shape(call))
        return None

    def divide(self, call: relax.Call, args: list[Value]) -> Value | None:
        if isinstance(args[1], Constant) and args[1].value.size == 1:
            return self._scaled(call, args[0], 1.0 / float(args[1].value))
        return None

    def multiply(self, call: relax.Call, args: list[Value]) -> Value | None:
        x, s = args
        if isinstance(x, Constant) or (isinstance(x, View) and x.parameter):
            x, s = s, x
        if isinstance(s, Constant) and s.value.size == 1:
            return self._scaled(call, x, float(s.value))
        features = _shape(call)[-1]
        if (name := self._vector(s, features)) and (rows := self._rows(x)) is not None:
            return self._as(self._emit("scale", {"x": rows, "s": name}, hint=self.where), _shape(call))
        return None

    def add(self, call: relax.Call, args: list[Value]) -> Value | None:
        a, b = args
        if isinstance(a, View) and a.parameter:
            a, b = b, a
        shape = _shape(call)
        if isinstance(a, Concat):
            return self._embed_concat(a, b, shape)
        if isinstance(b, View) and b.parameter:
            producer = self.producer.get(a.base) if isinstance(a, View) else None
            single = isinstance(call.args[0], relax.Var) and self.uses.get(call.args[0], 0) == 1
            if producer is not None and single and isinstance(a, View):
                features = self.program.tensors[a.base].shape[-1]
                fits = producer.op == "linear" or (producer.op == "patch_embed" and "pos" not in producer.inputs)
                if fits and "b" not in producer.inputs and self._broadcasts_features(a, b, features):
                    producer.inputs["b"] = b.base
                    return View(a.base, a.index)
                if producer.op == "patch_embed" and "pos" not in producer.inputs and a.plain \
                        and self._parameter(b) and b.index.size == a.index.size:
                    self.program.tensors[b.base].shape = self.program.tensors[a.base].shape
                    producer.inputs["pos"] = b.base
                    return View(a.base, a.index.reshape(shape))
            return None
        left, right = self._rows(a), self._rows(b)
        if left is not None and right is not None \
                and self.program.tensors[left].shape == self.program.tensors[right].shape:
            return self._as(self._emit("add", {"a": left, "b": right}, hint=f"{self.where}.add"), shape)
        return None

    def _broadcasts_features(self, a: View, b: View, features: int) -> bool:
        """b, broadcast over a's arrangement, adds b[f] to every element of feature f."""
        if self._parameter(b) is None or b.index.size != features or len(b.shape) > len(a.shape):
            return False
        try:
            spread = np.broadcast_to(b.index, a.shape)
        except ValueError:
            return False
        return bool((spread == a.index % features).all())

    def _embed_concat(self, cat: Concat, pos: Value, shape: tuple[int, ...]) -> Value | None:
        embedded = self._rows(self._settle(cat))
        if embedded is None:
            return None
        producer = self.producer[embedded]
        if producer.op == "patch_embed" and "pos" not in producer.inputs and (name := self._parameter(pos, shape)):
            self.program.tensors[name].shape = self.program.tensors[embedded].shape
            producer.inputs["pos"] = name
            return self._as(embedded, shape)
        return None

    def concat(self, call: relax.Call, args: list[Value]) -> Value | None:
        items = args[0].items if isinstance(args[0], Many) else args
        return Concat(items, int(call.attrs.axis), _shape(call), (call, args))

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
                self.program.tensors[names[0]].shape = (rows, tensor.shape[1])
                producer.inputs["prefix"] = names[0]
                tensor.shape = (value.shape[1], tensor.shape[1])
                value.items = [self._as(last.base, value.shape)]
                return self._as(last.base, value.shape)
            if len(value.items) == 1:
                return value.items[0]
        if isinstance(value, Concat | GramProduct) and value.origin:
            return self._tail(_op_name(value.origin[0]), *value.origin)
        return value

    def layer_norm(self, call: relax.Call, args: list[Value]) -> Value | None:
        features = _shape(call)[-1]
        rows, gamma, beta = self._rows(args[0]), self._vector(args[1], features), self._vector(args[2], features)
        if rows is None or [int(v) for v in call.attrs.axes] not in ([-1], [len(_shape(call)) - 1]):
            return None
        inputs = {"x": rows}
        for slot, name, value in (("gamma", gamma, args[1]), ("beta", beta, args[2])):
            if name:
                inputs[slot] = name
            elif not (isinstance(value, Constant) and (value.value == (1.0 if slot == "gamma" else 0.0)).all()):
                return None
        y = self._emit("layer_norm", inputs, {"eps": float(call.attrs.epsilon)}, hint=self.where)
        return self._as(y, _shape(call))

    def _activation(self, op: str, call: relax.Call, args: list[Value], attrs: dict[str, Any]) -> Value | None:
        rows = self._rows(args[0])
        return None if rows is None else self._as(self._emit(op, {"x": rows}, attrs), _shape(call))

    def gelu(self, call: relax.Call, args: list[Value]) -> Value | None:
        return self._activation("gelu", call, args, {"tanh": 0})

    def gelu_tanh(self, call: relax.Call, args: list[Value]) -> Value | None:
        return self._activation("gelu", call, args, {"tanh": 1})

    def relu(self, call: relax.Call, args: list[Value]) -> Value | None:
        return self._activation("relu", call, args, {})

    def attention(self, call: relax.Call, args: list[Value]) -> Value | None:
        """Self-attention on one packed (N, 3D) tensor: q, k, v each (1, N, heads, d) views of it."""
        if len(args) < 3 or not all(isinstance(v, View) and not v.parameter for v in args[:3]):
            return None
        q, k, v = args[:3]
        shape = self.program.tensors[q.base].shape
        if len(shape) != 2 or not q.base == k.base == v.base or len(q.shape) != 4 or q.shape[0] != 1:
            return None
        _, n, heads, d = q.shape
        if shape != (n, 3 * heads * d):
            return None
        packed = np.arange(n * shape[1]).reshape(n, 3, heads, d)
        if not all((part.index[0] == packed[:, i]).all() for i, part in enumerate((q, k, v))):
            return None
        scale = call.attrs.scale
        if scale is not None and not math.isclose(float(getattr(scale, "value", scale)), d ** -0.5, rel_tol=1e-6):
            return None
        if call.attrs.causal_mask is not None:
            return None
        o = self._emit("attention", {"qkv": q.base}, {"heads": heads})
        return self._as(o, _shape(call))

    def conv2d(self, call: relax.Call, args: list[Value]) -> Value | None:
        """A convolution whose kernel equals its stride, on the image itself: the patch embedding."""
        x: Any = args[0]
        w: Any = args[1]
        if not (isinstance(x, View) and x.base == "image" and x.plain) or (name := self._parameter(w)) is None:
            return None
        a = call.attrs
        d, c, kh, kw = w.shape if len(w.shape) == 4 else (0, 0, 0, 0)
        strides = [int(v) for v in a.strides]
        if kh != kw or strides != [kh, kw] or any(int(v) for v in a.padding) or int(a.groups) != 1 \
                or x.shape[2] % kh or x.shape[3] % kw:
            return None
        self.program.tensors[name].shape = (d, c * kh * kw)
        y = self._emit("patch_embed", {"image": "image", "w": name, "scale": "image.scale", "shift": "image.shift"},
                       {"patch": kh}, hint=self.where)
        _, _, gh, gw = _shape(call)
        return View(y, np.arange(gh * gw * d, dtype=np.int32).reshape(gh, gw, d).transpose(2, 0, 1)[None])

    def mean(self, call: relax.Call, args: list[Value]) -> Value | None:
        """Mean over the tokens start .. N-1."""
        x = args[0]
        if not isinstance(x, View) or x.parameter or [int(v) for v in call.attrs.axis] != [1] or len(x.shape) != 3:
            return None
        t = self.program.tensors[x.base]
        start = t.shape[0] - x.shape[1] if len(t.shape) == 2 else -1
        if start < 0 or t.shape[1] != x.shape[2] \
                or not (x.index[0] == np.arange(math.prod(t.shape)).reshape(t.shape)[start:]).all():
            return None
        return self._as(self._emit("mean_rows", {"x": x.base}, {"start": start}), _shape(call))

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
                made = self._tail(_op_name(value.origin[0]), *value.origin)
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
        out = self._tensor(f"{self.where}.{name}" if self.where else name, _shape(call))
        made = Call(f"relax:{name}", inputs, {"y": out}, {}, where=self.where)
        self.program.calls.append(made)
        self.producer[out] = made
        self.tail[out] = call
        return self._as(out, _shape(call))

    def _float_image(self) -> str:
        if "image.float" not in self.program.tensors:
            if "normalize_image" not in REGISTRY:
                raise UnsupportedOperationError(f"the operation in {self.where or 'the model'} reads the image directly: "
                                                "only a patch embedding can")
            return self._emit("normalize_image",
                              {"image": "image", "scale": "image.scale", "shift": "image.shift"}, hint="image.float")
        return "image.float"

    def _drop_unused_parameters(self) -> None:
        used = {t for c in self.program.calls for t in c.inputs.values()}
        for name in [n for n, t in self.program.tensors.items() if t.role is Role.CONSTANT and n not in used]:
            del self.program.tensors[name]


def _permute(index: np.ndarray, call: relax.Call) -> np.ndarray:
    axes = call.attrs.axes
    return index.transpose([int(a) for a in axes] if axes is not None else None)


def _split(index: np.ndarray, call: relax.Call) -> list[np.ndarray]:
    where = call.attrs.indices_or_sections
    axis = int(call.attrs.axis)
    try:
        return np.split(index, int(where), axis)
    except TypeError:
        return np.split(index, [int(v) for v in where], axis)


def _squeeze(index: np.ndarray, call: relax.Call) -> np.ndarray:
    axis = call.attrs.axis
    return index.squeeze(tuple(int(a) for a in axis) if axis is not None else None)


def _strided_slice(index: np.ndarray, call: relax.Call) -> np.ndarray:
    axes, begin, end, stride = ([int(getattr(v, "value", v)) for v in a.fields] for a in
                                (call.args[1], call.args[2], call.args[3],
                                 call.args[4] if len(call.args) > 4 else relax.Tuple([relax.PrimValue(1)] * len(call.args[1].fields))))
    cut = [slice(None)] * index.ndim
    for a, b, e, s in zip(axes, begin, end, stride, strict=True):
        cut[a] = slice(b, min(e, index.shape[a]), s)
    return index[tuple(cut)]


def _take(index: np.ndarray, call: relax.Call) -> np.ndarray:
    return np.take(index, call.args[1].value.numpy(), axis=int(call.attrs.axis))


REARRANGEMENTS: dict[str, Callable[[np.ndarray, relax.Call], Any]] = {
    "reshape": lambda index, call: index.reshape(_shape(call)),
    "flatten": lambda index, call: index.reshape(_shape(call)),
    "expand_dims": lambda index, call: index.reshape(_shape(call)),
    "squeeze": _squeeze,
    "permute_dims": _permute,
    "broadcast_to": lambda index, call: np.broadcast_to(index, _shape(call)),
    "split": _split,
    "strided_slice": _strided_slice,
    "take": _take,
}
