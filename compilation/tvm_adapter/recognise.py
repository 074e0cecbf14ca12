"""Recognition: the Relax calls that stand for operations of the registry, one handler each.

A handler returns the call's value, or None when the call is not what it knows; then it is tried as a pure
rearrangement and at last kept as it is, for the long tail.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from tvm import relax

from compilation.errors import UnsupportedOperationError
from compilation.tvm_adapter.builder import Builder, op_name
from compilation.tvm_adapter.keep import REAL, relax_type
from compilation.tvm_adapter.rearrange import REARRANGEMENTS, reshaped, shape_of
from compilation.tvm_adapter.values import Concat, Constant, Many, Value, View, view_of
from compilation.types import Type


class Recogniser(Builder):
    """The handlers. `uses` counts how often each Relax variable is read; `bound` is what it stands for."""

    def __init__(self, name: str, taken: Collection[str] = ()) -> None:
        super().__init__(name, taken)
        self.uses: dict[Any, int] = {}
        self.bound: dict[Any, Any] = {}
        self.values: dict[Any, Value] = {}

    def walk(self, function: relax.Function) -> Value:
        """Import the bindings of a function whose parameters have values; returns the value of its result."""
        raise NotImplementedError

    def _sole_reader(self, var: Any) -> bool:
        """Nothing but the call at hand reads the tensor behind a variable, under whatever arrangement: the call that
        makes the tensor may take the one at hand in."""
        while isinstance(var, relax.Var) and self.uses.get(var, 0) == 1:
            made = self.bound.get(var)
            if isinstance(made, relax.Call) and op_name(made) not in REARRANGEMENTS:
                return True
            var = made.args[0] if isinstance(made, relax.Call) else made
        return False

    def matmul(self, call: relax.Call, args: list[Value]) -> Value | None:
        """x @ w^T of a parameter w is a linear; other products are of two matrices."""
        x, w = args
        if isinstance(x, View) and isinstance(w, View) and w.parameter and not x.parameter:
            shape = self.program.tensors[w.base].shape
            transposed = len(shape) == 2 and w.shape == shape[::-1] \
                and bool((w.index == np.arange(w.index.size).reshape(shape).T).all())
            if transposed and (rows := self._rows(x)) is not None:
                return self._as(self._emit("linear", {"x": rows, "w": w.base}, hint=self.where), shape_of(call))
        return self._product(call, x, w)

    def _product(self, call: relax.Call, a: Any, b: Any) -> Value | None:
        """A product of two matrices, each as it is or transposed."""
        shape = shape_of(call)
        if math.prod(shape[:-2]) != 1 or (left := self._operand(a)) is None or (right := self._operand(b)) is None:
            return None
        op = {(False, False): "matmul", (True, False): "matmul_tn", (False, True): "matmul_nt"}.get((left[1], right[1]))
        return self._as(self._emit(op, {"a": left[0], "b": right[0]}), shape) if op else None

    def _operand(self, value: Any) -> tuple[str, bool] | None:
        """The matrix behind a factor of a product, and whether the product takes it transposed."""
        value = self._arranged(value) or self._settle(value)
        if not isinstance(value, View) or len(value.shape) < 2 or math.prod(value.shape[:-2]) != 1:
            return None
        rows, columns = value.shape[-2:]
        turned = value.index.reshape(rows, columns).T
        tensor = self.program.tensors[value.base]
        if math.prod(tensor.shape) == value.index.size and value.base != self.image.pixels:
            if value.plain:
                return (value.base if tensor.shape == (rows, columns) else self._reshape(value.base, (rows, columns))), False
            if (turned.reshape(-1) == np.arange(turned.size)).all():
                return (value.base if tensor.shape == (columns, rows) else self._reshape(value.base, (columns, rows))), True
        made = None if value.parameter else self._rows(value)
        return (made, False) if made else None

    def _scaled(self, call: relax.Call, x: Any, factor: float) -> Value | None:
        return self._unary("mul_const", call, x, {"value": factor})

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
        shape = shape_of(call)
        if (name := self._vector(s, shape[-1] if shape else 0)) and isinstance(x, View) \
                and x.index.size == math.prod(shape) \
                and (rows := self._rows(x)) is not None:
            return self._as(self._emit("scale", {"x": rows, "s": name}, hint=self.where), shape_of(call))
        if all(isinstance(v, View | Concat) and math.prod(v.shape) == math.prod(shape) for v in (x, s)):
            return self._binary("mul", call, x, s)
        return None

    def add(self, call: relax.Call, args: list[Value]) -> Value | None:
        (a, b), (first, second) = args, call.args
        if isinstance(a, View) and a.parameter:
            a, b, first = b, a, second
        shape = shape_of(call)
        if isinstance(a, Concat) and isinstance(b, View) and b.parameter:
            return self._embed_concat(a, b, shape) if self._sole_reader(first) else None
        if isinstance(b, View) and b.parameter:
            producer = self.producer.get(a.base) if isinstance(a, View) else None
            if producer is not None and isinstance(a, View) and a.shape == shape and self._sole_reader(first):
                features = self.program.tensors[a.base].shape[-1]
                fits = producer.op == "linear" or (producer.op == "patch_embed" and "pos" not in producer.inputs)
                if fits and "b" not in producer.inputs and self._broadcasts_features(a, b, features):
                    self._give(producer, "b", b.base)
                    return a
                if producer.op == "patch_embed" and "pos" not in producer.inputs and a.plain \
                        and self._parameter(b) and b.index.size == a.index.size:
                    self.program.put_shape(b.base, self.program.tensors[a.base].shape)
                    self._give(producer, "pos", b.base)
                    return View(a.base, a.index.reshape(shape))
            return None
        if not all(isinstance(v, View | Concat) and math.prod(v.shape) == math.prod(shape) for v in (a, b)):
            return None                      # one is spread over the other: not the registry's addition
        return self._binary("add", call, a, b)

    def _binary(self, op: str, call: relax.Call, a: Any, b: Any) -> Value | None:
        """An operation on two activations, element by element; in their arrangement where they have the same."""
        shape = shape_of(call)
        one, two = self._arranged(a), self._arranged(b)
        if one and two and one.shape == two.shape and not one.plain and (one.index == two.index).all():
            return self._on(self._emit(op, {"a": one.base, "b": two.base}, hint=f"{self.where}.{op}"), one)
        left, right = self._rows(a), self._rows(b)
        if left is None or right is None:
            return None
        if self.program.tensors[left].shape != self.program.tensors[right].shape:
            right = self._reshape(right, self.program.tensors[left].shape)
        return self._as(self._emit(op, {"a": left, "b": right}, hint=f"{self.where}.{op}"), shape)

    def _unary(self, op: str, call: relax.Call, x: Any, attrs: dict[str, Any]) -> Value | None:
        """An operation on an activation, element by element; in its arrangement, where it is one of a whole tensor."""
        arranged = self._arranged(x)
        if arranged and not arranged.plain:
            return self._on(self._emit(op, {"x": arranged.base}, attrs), arranged)
        rows = self._rows(x)
        return None if rows is None else self._as(self._emit(op, {"x": rows}, attrs), shape_of(call))

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
            self.program.put_shape(name, self.program.tensors[embedded].shape)
            self._give(producer, "pos", name)
            return self._as(embedded, shape)
        return None

    def concat(self, call: relax.Call, args: list[Value]) -> Value | None:
        items = args[0].items if isinstance(args[0], Many) else args
        last = call.args[0].fields[-1] if isinstance(call.args[0], relax.Tuple) else None
        return Concat(items, int(call.attrs.axis), shape_of(call), (call, args), self._sole_reader(last))

    def layer_norm(self, call: relax.Call, args: list[Value]) -> Value | None:
        features = shape_of(call)[-1]
        gamma, beta = self._vector(args[1], features), self._vector(args[2], features)
        if [int(v) for v in call.attrs.axes] not in ([-1], [len(shape_of(call)) - 1]):
            return None
        inputs: dict[str, str] = {}
        for slot, name, value in (("gamma", gamma, args[1]), ("beta", beta, args[2])):
            if name:
                inputs[slot] = name
            elif not (isinstance(value, Constant) and (value.value == (1.0 if slot == "gamma" else 0.0)).all()):
                return None
        eps = float(call.attrs.epsilon)
        if heads := self._by_heads(args[0]):
            tensor, count, arranged = heads
            return self._on(self._emit("layer_norm", {"x": tensor, **inputs}, {"eps": eps, "heads": count}, hint=self.where),
                            arranged)
        if (rows := self._rows(args[0])) is None:
            return None
        return self._as(self._emit("layer_norm", {"x": rows, **inputs}, {"eps": eps}, hint=self.where), shape_of(call))

    def _by_heads(self, value: Any) -> tuple[str, int, View] | None:
        """An arrangement of (tokens, heads x features) whose last axis is one head's features: the tensor, the heads."""
        arranged = self._arranged(value)
        if arranged is None:
            return None
        width, features = self.program.tensors[arranged.base].shape[1], arranged.shape[-1]
        rows = arranged.index.reshape(-1, features)
        if width % features or (arranged.plain and width == features) or (rows[:, :1] % features).any() \
                or (rows != rows[:, :1] + np.arange(features)).any():
            return None
        return arranged.base, width // features, arranged

    def gelu(self, call: relax.Call, args: list[Value]) -> Value | None:
        return self._unary("gelu", call, args[0], {"tanh": 0})

    def gelu_tanh(self, call: relax.Call, args: list[Value]) -> Value | None:
        return self._unary("gelu", call, args[0], {"tanh": 1})

    def elementwise(self, op: str, call: relax.Call, args: list[Value]) -> Value | None:
        """What an operation of the registry says that it is (`Op.relax`)."""
        return self._unary(op, call, args[0], {})

    def attention(self, call: relax.Call, args: list[Any]) -> Value | None:
        """Attention of (1, N, heads, d) views of any tensors. Others are spelled out."""
        plain = len(args) == 3 and call.attrs.scale is None and call.attrs.causal_mask is None
        if not plain:
            raise UnsupportedOperationError(f"attention in {self.place} has a mask, a scale or a window: write it as "
                                            "matmul, softmax, matmul")
        if args[0].shape[0] == 1:
            return self._separate(call, args)
        return self._spell(_attention, call, args)

    def _separate(self, call: relax.Call, args: list[Any]) -> Value | None:
        """Attention of three tensors (N, heads * d); a factor of the queries is its scale."""
        made = []
        for value in map(self._settle, args):
            joined = isinstance(value, View) and reshaped(value, (value.shape[1], math.prod(value.shape[2:])))
            if (rows := self._rows(joined)) is None:
                return None
            made.append(rows)
        (_, _, heads, d), scale = args[0].shape, 0.0
        while (factor := self.producer.get(made[0])) and factor.op == "mul_const":
            scale = (scale or d ** -0.5) * factor.attrs["value"]
            made[0] = factor.inputs["x"]
        o = self._emit("attention", dict(zip("qkv", made, strict=True)), {"heads": heads, "scale": scale})
        return self._as(o, shape_of(call))

    def _spell(self, definition: Callable[..., Any], call: relax.Call, args: list[Any]) -> Value:
        """A call by its definition in simpler Relax operations, which are imported like any others."""
        variables = [relax.Var(f"a{i}", a.ty) for i, a in enumerate(call.args)]
        builder = relax.BlockBuilder()
        with builder.function("main", variables):
            with builder.dataflow():
                out = builder.emit_output(builder.emit(definition(*variables)))
            builder.emit_func_output(out)
        function = builder.get()["main"]
        self.values |= dict(zip(function.params, args, strict=True))
        return self.walk(function)

    def conv2d(self, call: relax.Call, args: list[Value]) -> Value | None:
        """A convolution whose kernel equals its stride, on the image itself: the patch embedding."""
        x: Any = args[0]
        w: Any = args[1]
        if not (isinstance(x, View) and x.base == self.image.pixels and x.plain) or (name := self._parameter(w)) is None:
            return None
        a = call.attrs
        if a.data_layout != "NCHW" or any(int(v) != 1 for v in a.dilation):
            return None
        d, c, kh, kw = w.shape if len(w.shape) == 4 else (0, 0, 0, 0)
        strides = [int(v) for v in a.strides]
        if kh != kw or strides != [kh, kw] or any(int(v) for v in a.padding) or int(a.groups) != 1 \
                or x.shape[2] % kh or x.shape[3] % kw:
            return None
        self.program.put_shape(name, (d, c * kh * kw))
        y = self._emit("patch_embed", {"image": self.image.pixels, "w": name, "scale": self.image.scale,
                                       "shift": self.image.shift}, {"patch": kh}, hint=self.where)
        _, _, gh, gw = shape_of(call)
        tokens = view_of(y, (1, gh, gw, d))
        move = relax.op.permute_dims(relax.Var("tokens", relax_type(Type(tuple(tokens.shape)))), [0, 3, 1, 2])
        return View(y, tokens.index.transpose(0, 3, 1, 2), moved=(move, tokens, None))

    def mean(self, call: relax.Call, args: list[Any]) -> Value | None:
        """Mean over the tokens start .. N-1."""
        x = args[0]
        axes = call.attrs.axis
        if not isinstance(x, View) or x.parameter or axes is None or [int(v) for v in axes] != [1] \
                or len(x.shape) != 3 or x.shape[0] != 1:
            return None
        t = self.program.tensors[x.base]
        start = t.shape[0] - x.shape[1] if len(t.shape) == 2 else -1
        if start < 0 or t.shape[1] != x.shape[2] \
                or not (x.index[0] == np.arange(math.prod(t.shape)).reshape(t.shape)[start:]).all():
            return None
        return self._as(self._emit("mean_rows", {"x": x.base}, {"start": start}), shape_of(call))


def _attention(q: Any, k: Any, v: Any) -> Any:
    """softmax(q k^T / sqrt(d)) v, on (1, N, heads, d)."""
    heads = [relax.op.permute_dims(x, [0, 2, 1, 3]) for x in (q, k, v)]
    scaled = relax.op.multiply(heads[0], relax.const(shape_of(q)[-1] ** -0.5, REAL))
    scores = relax.op.matmul(scaled, relax.op.permute_dims(heads[1], [0, 1, 3, 2]))
    return relax.op.permute_dims(relax.op.matmul(relax.op.nn.softmax(scores, -1), heads[2]), [0, 2, 1, 3])
