"""Products of two matrices, activations or whole parameters. The gradients of each are made of the other two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from compilation.ops.base import Arrays, Op, Sample, Site, register
from compilation.ops.common import tile


class Product(Op):
    source = "vt_matmul.c"
    inputs, outputs, adds, vanishes = (tile("a"), tile("b")), (tile("y"),), ("y",), (("a",), ("b",))
    linear = {"a": ("y",), "b": ("y",)}
    turned: ClassVar[tuple[bool, bool]] = (False, False)    # whether a, and b, are taken transposed

    def macs(self, site: Site) -> int:
        sizes = self.bind(site)
        return sizes["n"] * sizes["k"] * sizes["o"]

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        a, b = (x.T if t else x for x, t in zip((inputs["a"], inputs["b"]), self.turned, strict=True))
        return {"y": a @ b}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        for n, k, o in ((7, 19, 21), (1, 5, 3), (20, 3, 17)):
            shapes = ((n, k), (k, o))
            a, b = (rng.normal(size=s[::-1] if t else s) for s, t in zip(shapes, self.turned, strict=True))
            yield Sample({"a": a, "b": b})


@register
class Matmul(Product):
    """y (N, O) = a (N, K) b (K, O)."""

    name, symbol, indices = "matmul", "vt_matmul", "a: n k, b: k o -> y: n o"
    layout = {"b": "rows", "y": "rows"}
    gradients = {"a": ("matmul_nt", "dy", "b"), "b": ("matmul_tn", "a", "dy")}


@register
class MatmulTN(Product):
    """y (N, O) = a^T b, a (K, N), b (K, O)."""

    name, symbol, indices = "matmul_tn", "vt_matmul_tn", "a: k n, b: k o -> y: n o"
    layout, turned = {"b": "rows", "y": "rows"}, (True, False)
    gradients = {"a": ("matmul_nt", "b", "dy"), "b": ("matmul", "a", "dy")}


@register
class MatmulNT(Product):
    """y (N, O) = a b^T, a (N, K), b (O, K)."""

    name, symbol, indices = "matmul_nt", "vt_matmul_nt", "a: n k, b: o k -> y: n o"
    layout, turned = {"a": "panel", "y": "panel"}, (False, True)
    gradients = {"a": ("matmul", "dy", "b"), "b": ("matmul_tn", "dy", "a")}
