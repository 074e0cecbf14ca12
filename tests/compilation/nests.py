"""Nests written by hand: an MLP, forward and gradient, and attention; what is needed to run and to check them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from compilation.ops import REGISTRY
from compilation.ops import reference as ref
from compilation.ops.base import Arrays, Site
from compilation.regions.loops import PANEL, ROWS, Axis, Loop, Nest, Stored, TileCall, Window
from compilation.regions.windows import Shape
from compilation.types import BYTES, Type


def whole(*sizes: int) -> tuple[Axis, ...]:
    return tuple(map(Axis, sizes))


def tile(loop: str, size: int, factor: int = 1) -> Axis:
    """The present tile of a loop, of all."""
    return Axis(size, loop, factor=factor)


def held(loop: str, size: int, factor: int = 1) -> Axis:
    """All of a tensor that holds the present tile."""
    return Axis(size, loop, loop, factor)


def at(tensor: str, *axes: Axis | int) -> Window:
    return Window(tensor, tuple(Axis(a) if isinstance(a, int) else a for a in axes))


@dataclass
class Case:
    """A nest, its slots, and what it should make. expected: by result slot, and d_<slot> of updates."""

    nest: Nest
    inputs: Arrays
    expected: Arrays
    parts: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    updates: tuple[str, ...] = ()
    whole: Nest | None = None           # the same in single calls on whole tensors

    @property
    def outputs(self) -> dict[str, Shape]:
        return {s: v.shape for s, v in self.expected.items() if s.removeprefix("d_") not in self.updates}

    @property
    def shapes(self) -> dict[str, Shape]:
        return {s: v.shape for s, v in self.inputs.items()}

    @property
    def trained(self) -> dict[str, tuple[str, int]]:
        return {s: (axis, len(index)) for s, (axis, index) in self.parts.items()}


def stored(*items: tuple[str, Sequence[int], str, int | str]) -> dict[str, Stored]:
    """(name, shape, layout, offset or slot); the layout "work" is a kernel's scratch of so many bytes."""
    made = {}
    for name, shape, layout, where in items:
        kind = Type(tuple(shape), BYTES) if layout == "work" else Type(tuple(shape))
        made[name] = Stored(name, kind, ROWS if layout == "work" else layout,
                            where if isinstance(where, int) else None, where if isinstance(where, str) else "")
    return made


def _scratch(items: Mapping[str, Stored]) -> int:
    return max((s.offset + s.type.bytes for s in items.values() if s.offset is not None), default=0)


def _mlp_values(n: int, c: int, h: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(n, c)), "gamma": rng.normal(1, 0.3, c), "beta": rng.normal(size=c),
            "w1": rng.normal(0, c**-0.5, (h, c)), "b1": rng.normal(size=h),
            "w2": rng.normal(0, h**-0.5, (c, h)), "b2": rng.normal(size=c)}


def mlp(n: int = 37, c: int = 24, h: int = 40, tn: int = 16, th: int = 16) -> Case:
    """y = x + w2 gelu(w1 layer_norm(x) + b1) + b2, in tiles of tokens and of hidden features."""
    v = _mlp_values(n, c, h)
    a = ref.layer_norm(v["x"], v["gamma"], v["beta"], 1e-6)
    y = v["x"] + ref.activation(a @ v["w1"].T + v["b1"], "gelu") @ v["w2"].T + v["b2"]

    def nest(tn: int, th: int) -> Nest:
        own = stored(("a", (tn, c), PANEL, 0), ("u", (tn, th), PANEL, 4 * tn * c), ("g", (tn, th), PANEL, 4 * tn * c),
                     ("s", (tn, c), PANEL, 4 * tn * (c + th)))
        t, i = held("n", tn), held("h", th)
        hidden = Loop("h", h, th, (
            TileCall("linear", {"x": at("a", t, c), "w": at("w1", tile("h", th), c), "b": at("b1", tile("h", th))},
                     {"y": at("u", t, i)}, where="mlp.fc1"),
            TileCall("gelu", {"x": at("u", t, i)}, {"y": at("g", t, i)}, {"tanh": 0}, where="mlp.act"),
            TileCall("linear", {"x": at("g", t, i), "w": at("w2", c, tile("h", th)), "b": at("b2", c)},
                     {"y": at("s", t, c)}, adds={"y": ("h",)}, where="mlp.fc2")))
        return Nest(own, (Loop("n", n, tn, (
            TileCall("layer_norm", {"x": at("x", tile("n", tn), c), "gamma": at("gamma", c), "beta": at("beta", c)},
                     {"y": at("a", t, c)}, {"eps": 1e-6, "heads": 1}, where="norm"), hidden,
            TileCall("add", {"a": at("x", tile("n", tn), c), "b": at("s", t, c)}, {"y": at("y", tile("n", tn), c)}))),),
            _scratch(own))

    return Case(nest(tn, th), v, {"y": y}, whole=nest(n, h))


def _tile_of(gradient: np.ndarray, rows: int) -> tuple[int, int]:
    return min(rows, gradient.shape[0]), gradient.shape[1]


def mlp_gradient(n: int = 37, c: int = 24, h: int = 40, tn: int = 16, th: int = 16,
                 parts: Mapping[str, tuple[str, list[int]]] | None = None) -> Case:
    """Of y = w2 gelu(w1 x + b1): d_x is written, w2 and b1 updated, the gradient of w1 summed up in a buffer; hidden
    features in tiles outside, tokens inside."""
    parts = dict(parts or {})
    v = _mlp_values(n, c, h)
    v = {k: v[k] for k in ("x", "w1", "b1", "w2")} | {"dy": np.random.default_rng(1).normal(size=(n, c))}
    u = v["x"] @ v["w1"].T + v["b1"]
    act, du = ref.activation(u, "gelu"), v["dy"] @ v["w2"] * ref.activation_slope(u, "gelu")
    expected = {"d_x": du @ v["w1"], "d_w1": du.T @ v["x"], "d_b1": du.sum(0), "d_w2": v["dy"].T @ act}
    for s, (axis, index) in parts.items():
        expected[f"d_{s}"] = np.take(expected[f"d_{s}"], index, 1 if axis == "cols" else 0)

    def nest(tn: int, th: int) -> Nest:
        row, t, hid, i = tile("n", tn), held("n", tn), tile("h", th), held("h", th)
        own, sizes, offset = [], {"xp": (tn, c, PANEL), "u": (tn, th, PANEL), "act": (n, th, ROWS), "du": (tn, th, PANEL),
                                  "sum_b": (1, h, ROWS), "sum_w": (*_tile_of(expected["d_w1"], th), ROWS)}, 0
        for name, (rows, cols, layout) in sizes.items():
            own.append((name, (rows, cols), layout, offset))
            offset += 4 * rows * cols
        kept = stored(*own)
        inner = Loop("n", n, tn, (
            TileCall("copy", {"x": at("x", row, c)}, {"y": at("xp", t, c)}),
            TileCall("linear", {"x": at("xp", t, c), "w": at("w1", hid, c), "b": at("b1", hid)}, {"y": at("u", t, i)},
                     where="fc1"),
            TileCall("gelu", {"x": at("u", t, i)}, {"y": at("act", row, i)}, {"tanh": 0}, where="act"),
            TileCall("linear_grad", {"w": at("w2", c, hid), "dy": at("dy", row, c)}, {"d_x": at("da", row, i)}, where="fc2"),
            TileCall("gelu_grad", {"x": at("u", t, i), "dy": at("da", row, i)}, {"d_x": at("du", t, i)}, {"tanh": 0},
                     where="act"),
            TileCall("linear_grad", {"w": at("w1", hid, c), "dy": at("du", t, i)}, {"d_x": at("d_x", row, c)},
                     adds={"d_x": ("h",)}, where="fc1"),
            TileCall("linear_grad", {"x": at("x", row, c), "w": at("w1", hid, c), "dy": at("du", t, i)},
                     {"d_w": at("sum_w", i, c)}, adds={"d_w": ("n",)}, where="fc1"),
            TileCall("linear_grad", {"dy": at("du", t, i)}, {"d_b": at("sum_b", hid)}, adds={"d_b": ("n",)}, where="fc1")))
        outer = Loop("h", h, th, (inner, TileCall(
            "linear_grad", {"x": at("act", n, i), "w": at("w2", c, hid), "dy": at("dy", n, c)}, {},
            updates={"w": at("w2", c, hid)}, where="fc2"),
            TileCall("apply", {"d_w": at("sum_w", i, c)}, {}, updates={"w": at("w1", hid, c)}, where="fc1")))
        kept |= stored(("da", (n, th), ROWS, offset))
        body = (outer, TileCall("sgd", {"g": at("sum_b", h)}, {}, updates={"p": at("b1", h)}))
        return Nest(kept, body, _scratch(kept))

    return Case(nest(tn, th), v, expected, parts, ("w1", "b1", "w2"), nest(n, h))


def attention(n: int = 37, heads: int = 3, d: int = 5, tm: int = 0) -> Case:
    """Attention of tiles of 16 queries, head by head; with tm also of tiles of so many keys."""
    rng = np.random.default_rng(2)
    v = {s: rng.normal(size=(n, heads * d)) for s in "qkv"}
    attrs: dict[str, Any] = {"heads": heads, "scale": 0.0}
    t, head, tq = tile("n", min(16, n)), tile("h", d, d), min(16, n)
    outs = {"y": at("o", held("n", tq), held("h", d, d))}
    op = REGISTRY["attention"]
    site = Site({s: x.shape for s, x in v.items()}, attrs, frozenset({"y"}))
    work = op.scratch(op.window(site, {"n": tq, "h": 1, "m": tm or n}))
    own = stored(("o", (tq, d), op.layout["y"], 0), ("high", (tq, 1), ROWS, 4 * tq * d),
                 ("total", (tq, 1), ROWS, 4 * tq * (d + 1)), ("work", (work,), "work", 4 * tq * (d + 2)))
    keys: Axis | int = tile("m", tm) if tm else n
    ins = {"q": at("q", t, head), "k": at("k", keys, head), "v": at("v", keys, head)}
    call: Loop | TileCall = TileCall("attention", ins, outs, attrs, scratch="work", where="attn")
    if tm:
        outs |= {s: at(s, held("n", tq), held("h", 1)) for s in ("high", "total")}
        call = Loop("m", n, tm, (TileCall("attention", ins, outs, attrs, carried={"m": "m"}, scratch="work", where="attn"),))
    copy = TileCall("copy", {"x": outs["y"]}, {"y": at("y", t, head)})
    body = (Loop("n", n, tq, (Loop("h", heads, 1, (call, copy)),)),)
    return Case(Nest(own, body, _scratch(own)), v, REGISTRY["attention"].reference(v, attrs))


def waiting(n: int = 37, tiles: int = 5, d: int = 4, c: int = 6) -> Case:
    """y = x w^T + u by tiles of columns; but for the last tile, the product waits where y's next one is written."""
    rng = np.random.default_rng(3)
    v = {"x": rng.normal(size=(n, c)), "w": rng.normal(size=(tiles * d, c)), "u": rng.normal(size=(n, tiles * d))}
    tiles_of = [x for h in ("h", "h1") for x in ((f"p_{h}", (16, d), PANEL, 64 * d), (f"a_{h}", (16, c), PANEL, 128 * d))]
    own = stored(("t", (n, d), ROWS, "y"), ("r", (16, d), ROWS, 0), *tiles_of)
    own["t"] = replace(own["t"], strip=Axis(d, "h", factor=d, ahead=1))

    def product(n_: str, h: str, to: Window) -> tuple[TileCall, ...]:
        a, p = at(f"a_{h}", held(n_, 16), c), at(f"p_{h}", held(n_, 16), held(h, d, d))
        return (TileCall("copy", {"x": at("x", tile(n_, 16), c)}, {"y": a}),
                TileCall("linear", {"x": a, "w": at("w", tile(h, d, d), c)}, {"y": p}),
                TileCall("copy", {"x": p}, {"y": to}))

    def total(n_: str, h: str, of: Window) -> TileCall:
        u, y = (at(s, tile(n_, 16), tile(h, d, d)) for s in "uy")
        return TileCall("add", {"a": of, "b": u}, {"y": y})

    waits, at_once = (lambda n_: at("t", tile(n_, 16), held("h", d, d))), at("r", held("n2", 16), held("h1", d, d))
    most = Loop("h", tiles, 1, (Loop("n", n, 16, product("n", "h", waits("n"))),
                                Loop("n1", n, 16, (total("n1", "h", waits("n1")),))), part=(0, tiles - 1))
    last = Loop("h1", tiles, 1, (Loop("n2", n, 16, (*product("n2", "h1", at_once), total("n2", "h1", at_once))),),
                part=(tiles - 1, tiles))
    return Case(Nest(own, (most, last), _scratch(own)), v, {"y": v["x"] @ v["w"].T + v["u"]})
