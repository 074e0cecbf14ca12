"""Recognition: the Relax calls that stand for operations of the registry, one handler each.

A handler returns the call's value, or None when the call is not what it knows; then it is tried as a pure
rearrangement and at last kept as it is, for the long tail.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm import relax

from compilation.tvm_adapter.builder import Builder
from compilation.tvm_adapter.rearrange import shape_of
from compilation.tvm_adapter.values import Concat, Constant, GramProduct, Many, Value, View


class Recogniser(Builder):
    """The handlers. `uses` counts how often each Relax variable is read."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.uses: dict[Any, int] = {}

    def matmul(self, call: relax.Call, args: list[Value]) -> Value | None:
        """x @ w^T of a parameter w is a linear; other products may be steps of the Gram residual."""
        x, w = args
        if isinstance(x, View) and isinstance(w, View) and w.parameter and not x.parameter:
            shape = self.program.tensors[w.base].shape
            transposed = len(shape) == 2 and w.shape == shape[::-1] \
                and bool((w.index == np.arange(w.index.size).reshape(shape).T).all())
            if transposed and (rows := self._rows(x)) is not None:
                return self._as(self._emit("linear", {"x": rows, "w": w.base}, hint=self.where), shape_of(call))
        return self._gram_step(call, x, w)

    def _gram_step(self, call: relax.Call, x: Any, w: Any) -> Value | None:
        origin = (call, [x, w])
        if isinstance(x, View) and not x.parameter and isinstance(w, View) and w.parameter and w.plain:
            base = self.program.tensors[x.base]
            if len(base.shape) == 2 and x.shape == (1, *base.shape[::-1]) \
                    and (x.index[0] == np.arange(x.index.size).reshape(base.shape).T).all():
                return GramProduct(x.base, "xta", [w.base], shape_of(call), origin)
        if isinstance(x, GramProduct) and x.stage in ("xta", "xxta") and isinstance(w, View) and w.parameter and w.plain:
            stage = "xtab" if x.stage == "xta" else "t"
            return GramProduct(x.x, stage, [*x.factors, w.base], shape_of(call), origin)
        if isinstance(w, GramProduct) and isinstance(x, View) and x.plain and x.base == w.x and w.stage in ("xta", "xtab"):
            return GramProduct(w.x, "xxta" if w.stage == "xta" else "t", w.factors, shape_of(call), origin)
        return None

    def _scaled(self, call: relax.Call, x: Any, factor: float) -> Value | None:
        if isinstance(x, GramProduct) and x.stage == "t":
            features = self.program.tensors[x.x].shape[1]
            y = self._emit("gram", {"x": x.x, "a": x.factors[0], "b": x.factors[1]}, hint=f"{self.where}.gram")
            if not math.isclose(factor * features, 1.0, rel_tol=1e-6):
                y = self._emit("mul_const", {"x": y}, {"value": factor * features})
            return self._as(y, shape_of(call))
        if (rows := self._rows(x)) is not None:
            return self._as(self._emit("mul_const", {"x": rows}, {"value": factor}), shape_of(call))
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
        features = shape_of(call)[-1]
        if (name := self._vector(s, features)) and (rows := self._rows(x)) is not None:
            return self._as(self._emit("scale", {"x": rows, "s": name}, hint=self.where), shape_of(call))
        return None

    def add(self, call: relax.Call, args: list[Value]) -> Value | None:
        a, b = args
        if isinstance(a, View) and a.parameter:
            a, b = b, a
        shape = shape_of(call)
        if isinstance(a, Concat):
            return self._embed_concat(a, b, shape)
        if isinstance(b, View) and b.parameter:
            producer = self.producer.get(a.base) if isinstance(a, View) else None
            single = isinstance(call.args[0], relax.Var) and self.uses.get(call.args[0], 0) == 1
            if producer is not None and single and isinstance(a, View):
                features = self.program.tensors[a.base].shape[-1]
                fits = producer.op == "linear" or (producer.op == "patch_embed" and "pos" not in producer.inputs)
                if fits and "b" not in producer.inputs and self._broadcasts_features(a, b, features):
                    self._give(producer, "b", b.base)
                    return View(a.base, a.index)
                if producer.op == "patch_embed" and "pos" not in producer.inputs and a.plain \
                        and self._parameter(b) and b.index.size == a.index.size:
                    self.program.put(b.base, shape=self.program.tensors[a.base].shape)
                    self._give(producer, "pos", b.base)
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
            self.program.put(name, shape=self.program.tensors[embedded].shape)
            self._give(producer, "pos", name)
            return self._as(embedded, shape)
        return None

    def concat(self, call: relax.Call, args: list[Value]) -> Value | None:
        items = args[0].items if isinstance(args[0], Many) else args
        return Concat(items, int(call.attrs.axis), shape_of(call), (call, args))

    def layer_norm(self, call: relax.Call, args: list[Value]) -> Value | None:
        features = shape_of(call)[-1]
        rows, gamma, beta = self._rows(args[0]), self._vector(args[1], features), self._vector(args[2], features)
        if rows is None or [int(v) for v in call.attrs.axes] not in ([-1], [len(shape_of(call)) - 1]):
            return None
        inputs = {"x": rows}
        for slot, name, value in (("gamma", gamma, args[1]), ("beta", beta, args[2])):
            if name:
                inputs[slot] = name
            elif not (isinstance(value, Constant) and (value.value == (1.0 if slot == "gamma" else 0.0)).all()):
                return None
        y = self._emit("layer_norm", inputs, {"eps": float(call.attrs.epsilon)}, hint=self.where)
        return self._as(y, shape_of(call))

    def _activation(self, op: str, call: relax.Call, args: list[Value], attrs: dict[str, Any]) -> Value | None:
        rows = self._rows(args[0])
        return None if rows is None else self._as(self._emit(op, {"x": rows}, attrs), shape_of(call))

    def gelu(self, call: relax.Call, args: list[Value]) -> Value | None:
        return self._activation("gelu", call, args, {"tanh": 0})

    def gelu_tanh(self, call: relax.Call, args: list[Value]) -> Value | None:
        return self._activation("gelu", call, args, {"tanh": 1})

    def relu(self, call: relax.Call, args: list[Value]) -> Value | None:
        return self._activation("relu", call, args, {})

    def attention(self, call: relax.Call, args: list[Any]) -> Value | None:
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
        return self._as(o, shape_of(call))

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
        self.program.put(name, shape=(d, c * kh * kw))
        y = self._emit("patch_embed", {"image": "image", "w": name, "scale": "image.scale", "shift": "image.shift"},
                       {"patch": kh}, hint=self.where)
        _, _, gh, gw = shape_of(call)
        return View(y, np.arange(gh * gw * d, dtype=np.int32).reshape(gh, gw, d).transpose(2, 0, 1)[None])

    def mean(self, call: relax.Call, args: list[Any]) -> Value | None:
        """Mean over the tokens start .. N-1."""
        x = args[0]
        if not isinstance(x, View) or x.parameter or [int(v) for v in call.attrs.axis] != [1] or len(x.shape) != 3:
            return None
        t = self.program.tensors[x.base]
        start = t.shape[0] - x.shape[1] if len(t.shape) == 2 else -1
        if start < 0 or t.shape[1] != x.shape[2] \
                or not (x.index[0] == np.arange(math.prod(t.shape)).reshape(t.shape)[start:]).all():
            return None
        return self._as(self._emit("mean_rows", {"x": x.base}, {"start": start}), shape_of(call))
