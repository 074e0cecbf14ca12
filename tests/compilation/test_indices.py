"""The index line of an operation: its grammar, and what follows from it."""

from __future__ import annotations

import doctest

import pytest

from compilation.ops import indices
from compilation.ops.base import Op, Site, Slot
from compilation.ops.common import matrix, tile, vector
from compilation.ops.indices import bind, parse
from compilation.types import Type


class Heads(Op):
    """The example of `Op`."""

    name = "heads"
    inputs, outputs = (tile("x"), matrix("w"), vector("b", True)), (tile("y"), Slot("high", "tile", optional=True))
    indices = "x: n h*[d], w: o h*[d], b: o -> y: n o, high: n h"
    attrs, sized, carried = {"heads": (int, 1)}, {"h": "heads"}, {"h": ("high",)}


class HeadsGrad(Heads):
    """And its gradient, as if it were a linear layer's."""

    inputs, outputs = (tile("x"), matrix("w"), tile("dy")), (tile("d_x"), matrix("d_w"), vector("d_b"))
    indices = "x: n h*[d], w: o h*[d], dy: n o -> d_x: n h*[d], d_w: o h*[d], d_b: o"
    carried = {}
    needed_for = {"x": ("d_w",), "w": ("d_x", "d_w")}


SITE = Site({"x": (19, 12), "w": (7, 12)}, {"heads": 3})


def test_examples() -> None:
    assert doctest.testmod(indices).failed == 0


def test_what_follows_from_a_line() -> None:
    op = Heads()
    assert op.leaf
    assert op.line.outputs == ("y", "high")
    assert [str(a) for a in op.axes("x")] == ["n", "h*d"]
    assert (op.free("y"), op.summed("y"), op.placed) == (("n", "o"), ("h",), ("o", "h", "d"))
    assert op.bind(SITE) == {"h": 3, "n": 19, "d": 4, "o": 7}
    assert op.dims(SITE) == {**op.bind(SITE), "o_at": 0, "h_at": 0, "d_at": 0}
    assert op.infer(SITE) == {"y": Type((19, 7))}
    assert op.fields == {}


def test_a_gradient_sums_what_is_read_for_it() -> None:
    op = HeadsGrad()
    site = Site({"x": (19, 12), "w": (7, 12), "dy": (19, 7)}, {"heads": 3}, frozenset({"d_w"}), {"w": ("cols", 5)})
    assert {s: op.summed(s) for s in op.line.outputs} == {"d_x": ("o",), "d_w": ("n",), "d_b": ("n",)}
    assert {s: op.free(s) for s in op.line.outputs} == {"d_x": ("n", "h"), "d_w": ("o", "h"), "d_b": ("o",)}
    assert op.infer(site) == {"d_x": Type((19, 12)), "d_w": Type((7, 5)), "d_b": Type((7,))}
    assert op.infer(Site({"dy": (19, 7)}, {"heads": 3})) == {"d_b": Type((7,))}


def test_a_window_has_the_extents_asked_for() -> None:
    site = Heads().window(Site(SITE.shapes, SITE.attrs, parts={"w": ("cols", 7)}), {"n": 4, "h": 1})
    assert site.shapes == {"x": (4, 4), "w": (7, 4)}
    assert site.attrs == {"heads": 1}
    assert site.parts == {"w": ("cols", 4)}


@pytest.mark.parametrize(("line", "shapes", "known", "sizes"), [
    ("qkv: n 3*w, dy: n w", {"qkv": (5, 12)}, {}, {"n": 5, "w": 4}),
    ("x: *n c -> y: *n c", {"x": (2, 3, 4)}, {}, {"n": 6, "c": 4}),
    ("x: *n c -> y: *n c", {"x": (4,)}, {}, {"n": 1, "c": 4}),
    ("x: n c, b: c -> y: n c", {"x": (1, 3, 4), "b": (1, 1, 4)}, {}, {"n": 3, "c": 4}),
    ("x: [n] c -> y: 1 c", {"x": (3, 4)}, {}, {"n": 3, "c": 4}),
])
def test_bind(line: str, shapes: dict[str, tuple[int, ...]], known: dict[str, int], sizes: dict[str, int]) -> None:
    assert bind(line, shapes, known) == sizes


@pytest.mark.parametrize(("line", "shapes", "known", "message"), [
    ("qkv: n 3*w", {"qkv": (5, 13)}, {}, r"qkv has 13 elements along 3\*w, not 12"),
    ("x: n h*d", {"x": (5, 12)}, {}, r"x has 12 elements along h\*d, and the size of h is not known"),
    ("x: n h*d", {"x": (5, 13)}, {"h": 3}, r"x has 13 elements along h\*d, not 12"),
    ("dy: 1 c", {"dy": (2, 3)}, {}, "dy has 2 elements along 1, not 1"),
    ("a: *n c, b: *n c -> y: *n c", {"a": (2, 3, 4), "b": (6, 4)}, {}, r"b has shape \[6, 4\], not \[2, 3, 4\]"),
    ("x: n c", {"x": (2, 3, 4)}, {}, r"x has shape \[2, 3, 4\], not \(n, c\)"),
])
def test_bind_refuses(line: str, shapes: dict[str, tuple[int, ...]], known: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bind(line, shapes, known)


def test_whole_indices_and_composites() -> None:
    line = parse("q: n h*d, k: m h*d, v: m h*e -> y: n h*e, high: n h")
    assert line.whole == {"d", "e"}
    assert line.indices(("q", "v")) == ("n", "h", "d", "m", "e")
    assert line.shape("y", {"n": 2, "h": 3, "e": 5}) == (2, 15)
