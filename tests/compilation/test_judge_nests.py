"""The judge of nests finds planted faults; the interpreter, which knows nothing of them, shows most in its numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compilation.errors import VerificationError
from compilation.regions.judge import judge
from compilation.regions.loops import PANEL, ROWS, Axis, Loop, Nest, Stored, TileCall, Window
from compilation.regions.run import run
from tests.compilation import nests
from tests.compilation.nests import Case, at, held, tile

Item = Loop | TileCall


def each(items: tuple[Item, ...], change: Callable[[Item], tuple[Item, ...]]) -> tuple[Item, ...]:
    """Every loop and call, inner ones first, replaced by what `change` gives."""
    out: list[Item] = []
    for item in items:
        out += change(replace(item, body=each(item.body, change)) if isinstance(item, Loop) else item)
    return tuple(out)


def calls(of: str, number: int = 0, **changes: Any) -> Callable[[Nest], Nest]:
    """Change fields of a call of an operation; mappings are merged, None drops a slot."""
    def on(nest: Nest) -> Nest:
        seen = [-1]

        def change(item: Item) -> tuple[Item, ...]:
            if isinstance(item, Loop) or item.op != of:
                return (item,)
            seen[0] += 1
            if seen[0] != number:
                return (item,)
            made = {}
            for name, value in changes.items():
                old = getattr(item, name)
                merged = {k: v for k, v in {**old, **value}.items() if v is not None} if isinstance(old, Mapping) else value
                made[name] = merged
            return (replace(item, **made),)

        return replace(nest, body=each(nest.body, change))
    return on


def without(op: str) -> Callable[[Nest], Nest]:
    return lambda nest: replace(nest, body=each(nest.body, lambda i: () if isinstance(i, TileCall) and i.op == op else (i,)))


def twice(op: str) -> Callable[[Nest], Nest]:
    return lambda nest: replace(nest, body=each(
        nest.body, lambda i: (i, replace(i)) if isinstance(i, TileCall) and i.op == op else (i,)))


def loops(of: str, **changes: Any) -> Callable[[Nest], Nest]:
    return lambda nest: replace(nest, body=each(
        nest.body, lambda i: (replace(i, **changes),) if isinstance(i, Loop) and i.variable == of else (i,)))


def stored(name: str, **changes: Any) -> Callable[[Nest], Nest]:
    def on(nest: Nest) -> Nest:
        made: dict[str, Stored] = {n: replace(s, **changes) if n == name else s for n, s in nest.stored.items()}
        return replace(nest, stored=made)
    return on


def reversed_body(variable: str) -> Callable[[Nest], Nest]:
    return lambda nest: replace(nest, body=each(
        nest.body, lambda i: (replace(i, body=i.body[::-1]),) if isinstance(i, Loop) and i.variable == variable else (i,)))


def moved_out(variable: str, number: int) -> Callable[[Nest], Nest]:
    """The last items of a loop behind it."""
    return lambda nest: replace(nest, body=each(
        nest.body, lambda i: (replace(i, body=i.body[:number]), *i.body[number:])
        if isinstance(i, Loop) and i.variable == variable else (i,)))


def sgd_first(nest: Nest) -> Nest:
    return replace(nest, body=(*nest.body[1:], nest.body[0]))


def update_in_tiles(nest: Nest) -> Nest:
    """w1 is updated from each tile's share of its gradient."""
    changed = calls("linear_grad", 2, outputs={"d_w": None}, adds={"d_w": None},
                    updates={"w": at("w1", tile("h", 16), 24)})(nest)
    return without("apply")(changed)


def bias_inside(nest: Nest) -> Nest:
    """b1 is updated inside the loop over hidden features, where later tiles of tokens read it again."""
    update = {"b": at("b1", tile("h", 16))}
    changed = calls("linear_grad", 3, outputs={"d_b": None}, adds={"d_b": None}, updates=update)(nest)
    return replace(changed, body=changed.body[:1])


def w2_before(nest: Nest) -> Nest:
    """w2's tile is updated from activations made before, in a loop of their own, and read then."""
    size = nest.scratch
    def change(i: Item) -> tuple[Item, ...]:
        if not isinstance(i, Loop) or i.variable != "h":
            return (i,)
        inner = i.body[0]
        assert isinstance(inner, Loop)
        first = replace(inner, variable="n1", body=tuple(_renamed(c, "n", "n1") for c in inner.body[:3]))
        return (replace(i, body=(first, i.body[1], replace(inner, body=tuple(
            c for c in inner.body if isinstance(c, Loop) or c.op != "gelu")))),)
    more = nests.stored(("xp1", (16, 24), PANEL, size), ("u1", (16, 16), PANEL, size + 1536))
    return Nest({**nest.stored, **more}, each(nest.body, change), size + 2560)


def _renamed(call: Item, old: str, new: str) -> TileCall:
    assert isinstance(call, TileCall)

    def window(w: Window) -> Window:
        return Window(w.tensor + "1" * (w.tensor in ("xp", "u")), tuple(replace(a, start=new if a.start == old else a.start,
                                              origin=new if a.origin == old else a.origin) for a in w.axes))
    return replace(call, inputs={s: window(w) for s, w in call.inputs.items()},
                   outputs={s: window(w) for s, w in call.outputs.items()})


def _add_inside(item: Item) -> tuple[Item, ...]:
    """The residual is added inside the loop that sums up its other half."""
    if isinstance(item, Loop) and item.variable == "n":
        *before, hidden, add = item.body
        assert isinstance(hidden, Loop)
        return (replace(item, body=(*before, replace(hidden, body=(*hidden.body, add)))),)
    return (item,)


def _in_another_loop(nest: Nest) -> Nest:
    """What is summed up over h is so three times."""
    more = calls("linear", 1, adds={"y": ("r", "h")})(nest)
    return replace(more, body=each(more.body, lambda i: (Loop("r", 3, 1, (i,)),)
                                   if isinstance(i, Loop) and i.variable == "h" else (i,)))


def _copy_inside(item: Item) -> tuple[Item, ...]:
    if isinstance(item, Loop) and item.variable == "h":
        inner, copy = item.body
        assert isinstance(inner, Loop)
        return (replace(item, body=(replace(inner, body=(*inner.body, copy)),)),)
    return (item,)


def strip(**changes: Any) -> Callable[[Nest], Nest]:
    """Of the nest whose t stands in a strip of y: another strip."""
    def on(nest: Nest) -> Nest:
        where = nest.stored["t"].strip
        assert where is not None
        return stored("t", strip=replace(where, **changes))(nest)
    return on


def _tile_of_strip(item: Item) -> tuple[Item, ...]:
    if isinstance(item, Loop) and item.variable in ("n", "n1"):
        v, rows = item.variable, 16
        whole, tiled = at("t", tile(v, rows), held("h", 4, 4)), at("t", held(v, rows), held("h", 4, 4))
        body = tuple(replace(c, inputs={s: tiled if w == whole else w for s, w in c.inputs.items()},
                             outputs={s: tiled if w == whole else w for s, w in c.outputs.items()})
                     for c in item.body if isinstance(c, TileCall))
        return (replace(item, body=body),)
    return (item,)


def _fill_first(item: Item) -> tuple[Item, ...]:
    """The last tile of the result made by the loop of the others, too."""
    if isinstance(item, Loop) and item.variable == "h":
        made = TileCall("fill", {}, {"y": at("y", 37, 20)})
        return (replace(item, body=(item.body[0], made, *item.body[1:])),)
    return (item,)


def _one_linear() -> Case:
    v = {"x": np.ones((8, 8)), "w": np.eye(8)}
    body = (TileCall("copy", {"x": at("x", 8, 8)}, {"y": at("a", 8, 8)}),
            TileCall("linear", {"x": at("a", 8, 8), "w": at("w", 8, 8)}, {"y": at("b", 8, 8)}),
            TileCall("copy", {"x": at("b", 8, 8)}, {"y": at("y", 8, 8)}))
    return Case(Nest(nests.stored(("a", (8, 8), PANEL, 0), ("b", (8, 8), PANEL, 256)), body, 512), v, {"y": v["x"]})


T, I = held("n", 16), held("h", 16)
FAULTS: dict[str, tuple[Callable[[], Case], Callable[[Nest], Nest], str]] = {
    "loop twice": (nests.mlp, loops("h", variable="n"), "variable"),
    "unknown loop": (nests.mlp, calls("gelu", inputs={"x": at("u", held("k", 16), I)}), "no loop around"),
    "unknown tensor": (nests.mlp, calls("gelu", inputs={"x": at("v", T, I)}), "unknown tensor v"),
    "unknown operation": (nests.mlp, calls("gelu", op="cross_entropy"), "no such leaf"),
    "slot absent": (nests.mlp, calls("gelu", inputs={"x": None}), "required slot x"),
    "illegal attribute": (nests.mlp, calls("gelu", attrs={"tanh": 3}), "no legal value"),
    "shape": (nests.mlp, calls("linear", inputs={"x": at("u", T, I)}), "shapes do not fit"),
    "window of another tile": (nests.mlp, calls("linear", inputs={"b": at("b1", tile("n", 16))}), "do not fit"),
    "window too large": (nests.mlp, stored("u", type=nests.stored(("u", (16, 8), ROWS, 0))["u"].type), "need 16 elements"),
    "extent too large": (nests.mlp, loops("n", extent=38), "reaches to 38|38 elements|has 38"),
    "extent too small": (nests.mlp, loops("n", extent=36), "reaches to 36"),
    "outside of scratch": (nests.mlp, lambda n: replace(n, scratch=n.scratch - 4), "not within"),
    "layout": (nests.mlp, stored("a", layout=ROWS), "takes panel"),
    "too many at once": (lambda: nests.attention(), loops("n", step=18), "not|at most"),
    "read before written": (nests.mlp, without("layer_norm"), "before it is written"),
    "order": (nests.mlp, reversed_body("h"), "before it is written"),
    "result not made": (nests.mlp, without("add"), "y is not made wholly"),
    "result made twice": (nests.mlp, twice("add"), "a second time"),
    "sum read while open": (nests.mlp, lambda n: replace(n, body=each(n.body, _add_inside)), "still open"),
    "sum over another loop": (nests.mlp, calls("linear", 1, adds={"y": ("n",)}), "s is summed over h"),
    "sum never added": (nests.mlp, calls("linear", 1, adds={"y": None}), "summed over h|share"),
    "always adds": (nests.mlp, calls("linear", 1, adds={"y": ()}), "never read"),
    "adds the same": (nests.mlp, _in_another_loop, "adds the same to s in each iteration of r"),
    "overlap": (nests.mlp, stored("s", offset=4), "overlaps"),
    "in place of what is read on": (_one_linear, stored("b", offset=0), "may not take the place of a"),
    "gradient of a window elsewhere": (nests.mlp_gradient, calls("apply", inputs={"d_w": at("sum_w", tile("h", 16), 24)}),
                                       "holds the gradient of one window|loops"),
    "gradient's buffer too small": (lambda: nests.mlp_gradient(parts={"w1": ("rows", [0, 1, 2])}), stored(
        "sum_w", type=nests.stored(("w", (2, 24), ROWS, 0))["w"].type), "the gradient of w1 there"),
    "scratch too small": (nests.attention, stored("work", type=nests.stored(("w", (64,), "work", 0))["w"].type), "scratch"),
    "scratch in use": (nests.attention, stored("work", offset=0), "overlaps"),
    "stands in an input": (nests.mlp, stored("a", offset=None, stands="x"), "no result"),
    "weight read after its update": (nests.mlp_gradient, w2_before, "w2 after its update"),
    "weight read in a later iteration": (nests.mlp_gradient, bias_inside, "b1|share"),
    "update of a share": (nests.mlp_gradient, update_in_tiles, "share of the sum over n"),
    "update of nothing": (nests.mlp_gradient, lambda n: replace(n, body=n.body[:1]), "b1 is not updated"),
    "updated twice": (nests.mlp_gradient, twice("sgd"), "has been updated"),
    "updated before its gradient": (nests.mlp_gradient, sgd_first, "before it is written"),
    "update of what is frozen": (nests.mlp_gradient, calls("sgd", updates={"p": at("x", 37, 24)}), "no parameter"),
    "state not carried": (lambda: nests.attention(tm=10), calls("attention", carried={"m": None}), "not carried"),
    "state lost": (lambda: nests.attention(tm=10), calls("attention", outputs={"high": None}), "which it does not have"),
    "carried result read early": (lambda: nests.attention(tm=10), lambda n: replace(n, body=each(n.body, _copy_inside)),
                                  "before the last tile|was read before"),
    "strip where the result is": (nests.waiting, strip(ahead=0), "may not take the place|where t has taken its place"),
    "strip behind": (nests.waiting, lambda n: strip(ahead=-1)(loops("h", part=(1, 4))(n)), "made wholly: t stands in it"),
    "strip before the columns": (nests.waiting, strip(ahead=-1), "reaches beyond"),
    "strip too far ahead": (nests.waiting, strip(ahead=2), "reaches beyond"),
    "strip of the last tile": (nests.waiting, loops("h", part=None), "reaches beyond"),
    "strip too narrow": (nests.waiting, strip(size=2), "no 2 columns of y"),
    "strip of a loop that is over": (nests.waiting, strip(start="h1", ahead=-1), "no loop around the call"),
    "strip of an input": (nests.waiting, stored("t", stands="u"), "no result"),
    "strip of a panel": (nests.waiting, stored("t", layout=PANEL), "no 4 columns of y"),
    "strip that is a tile": (nests.waiting, lambda n: replace(n, body=each(n.body, _tile_of_strip)), "its columns|loops"),
    "ahead of a loop, no strip": (nests.waiting, calls("add", outputs={"y": at("y", tile("n1", 16), Axis(
        4, "h", factor=4, ahead=1))}), "only a strip"),
    "result written ahead": (nests.waiting, lambda n: replace(n, body=each(n.body, _fill_first)), "y has taken its place"),
    "part of an index missing": (nests.waiting, lambda n: replace(n, body=n.body[:1]), "y is not made wholly"),
    "tile in the middle missing": (nests.waiting, loops("h", part=(0, 3)), "y is not made wholly"),
    "parts overlap": (nests.waiting, loops("h1", part=(3, 5)), "a second time"),
    "part beyond the index": (nests.waiting, loops("h1", part=(4, 6)), "cannot go from 4 to 6 of 5"),
    "part within a tile": (nests.mlp, loops("n", part=(8, 37)), "cannot go from 8"),
    "sum over a part": (nests.mlp, loops("h", part=(0, 16)), "which walks a part of its index"),
    "input written": (nests.mlp, calls("add", outputs={"y": at("x", tile("n", 16), 24)}), "is an input"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_judge_refuses(fault: str) -> None:
    make, change, message = FAULTS[fault]
    case = make()
    judge(case.nest, case.shapes, case.outputs, case.trained, case.updates)
    with pytest.raises(VerificationError, match=message):
        judge(change(case.nest), case.shapes, case.outputs, case.trained, case.updates)


def test_a_result_in_the_place_of_an_input() -> None:
    """The residual's result may take the place of x tile by tile; not if x is read once more behind it."""
    case = nests.mlp()
    judge(case.nest, case.shapes, case.outputs, over={"y": "x"})
    made = run(case.nest, case.inputs, case.outputs, over={"y": "x"})
    np.testing.assert_allclose(made["y"], case.expected["y"], rtol=0, atol=1e-12)
    again = replace(case.nest, body=(*case.nest.body, TileCall("copy", {"x": at("x", 37, 24)}, {"y": at("z", 37, 24)})))
    judge(again, case.shapes, {**case.outputs, "z": (37, 24)})
    with pytest.raises(VerificationError, match="x where y has taken its place"):
        judge(again, case.shapes, {**case.outputs, "z": (37, 24)}, over={"y": "x"})


def test_a_tensor_stands_in_a_result_before_that_is_made() -> None:
    x = {"x": (5, 7)}
    t = nests.stored(("t", (5, 7), ROWS, "y"))
    to_t = TileCall("gelu", {"x": at("x", 5, 7)}, {"y": at("t", 5, 7)})
    to_y = TileCall("relu", {"x": at("t", 5, 7)}, {"y": at("y", 5, 7)})
    judge(Nest(t, (to_t, to_y), 0), x, {"y": (5, 7)})
    made_first = TileCall("relu", {"x": at("x", 5, 7)}, {"y": at("y", 5, 7)})
    to_z = TileCall("copy", {"x": at("t", 5, 7)}, {"y": at("z", 5, 7)})
    with pytest.raises(VerificationError, match="y is not made wholly: t stands in it"):
        judge(Nest(t, (made_first, to_t, to_z), 0), x, {"y": (5, 7), "z": (5, 7)})
    with pytest.raises(VerificationError, match="t where y has taken its place"):
        judge(Nest(t, (to_t, made_first, to_z), 0), x, {"y": (5, 7), "z": (5, 7)})
