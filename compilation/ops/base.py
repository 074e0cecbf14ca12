"""One definition for each operation: types, NumPy reference, gradient, cost, kernel, samples.

Code generation, verification, the cost model and the tests walk `REGISTRY`. Shapes have no batch
dimension: the device trains with batch 1, a token matrix is (tokens, features).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from compilation.types import F32, Element, Shape, Type

Shapes = dict[str, Shape]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Slot:
    """An argument of an operation.

    kind: "tensor" (a plain buffer), "vector" (a 1-D or small parameter; trainable as a whole),
    "matrix" (a Weight, possibly in two parts; see `program.Weight`), "index" (a constant list of columns of the slot `of`).
    """

    name: str
    kind: str = "tensor"
    optional: bool = False
    element: Element = F32
    of: str = ""


@dataclass(frozen=True)
class Sample:
    """A test case: inputs (float64 arrays, matrices whole), attributes, and, for gradient operations,
    which gradients are wanted and which matrices are trained in part: slot -> (axis, index)."""

    inputs: Arrays
    attrs: dict[str, Any] = field(default_factory=dict)
    wants: tuple[str, ...] = ()
    parts: dict[str, tuple[str, list[int]]] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Site:
    """What an operation may know of one call: the shapes of its inputs, its attributes,
    the wanted outputs, and of each matrix how much is trained: slot -> (axis, n_trained)."""

    shapes: Shapes
    attrs: Mapping[str, Any]
    wants: frozenset[str] = frozenset()
    parts: dict[str, tuple[str, int]] = field(default_factory=dict)

    def has(self, slot: str) -> bool:
        return slot in self.shapes


class Op:
    """An operation. Subclasses set the class variables and override the methods.

    A gradient operation's output for the input slot ``s`` is called ``d_s``; which of them a call makes
    is its `wants`. For a matrix trained in part, ``d_s`` has the shape of the trained part.
    """

    name: ClassVar[str]
    symbol: ClassVar[str]                       # C function: void symbol(const symbol_args *, const vt_step *)
    source: ClassVar[str]                       # file in runtime/kernels
    inputs: ClassVar[tuple[Slot, ...]]
    outputs: ClassVar[tuple[Slot, ...]]
    indices: ClassVar[str]                      # the axes of the inputs, as in "x: n c, w: o c, b: o" (ops/indices.py)
    attrs: ClassVar[dict[str, tuple[type, Any]]] = {}  # name -> (int or float: int32_t or float in C, default)
    legal: ClassVar[dict[str, Container[int]]] = {}   # integer attribute -> the values that the kernel is written for
    schedule: ClassVar[tuple[str, ...]] = ()    # attributes that change memory, speed and, where a sum is cut, last bits
    inplace: ClassVar[dict[str, str]] = {}      # output slot -> input slot whose storage it may take over
    rowwise: ClassVar[tuple[str, ...]] = ()     # input slots of which row i alone decides row i of the result
    vanishes: ClassVar[tuple[tuple[str, ...], ...]] = ()   # the result is all zero where all of one of these are (or absent)
    gradient: ClassVar[str | None] = None       # name of the gradient operation
    own_update: ClassVar[str | None] = None     # parameter slot that the operation updates with an input, not a gradient
    needed_for: ClassVar[dict[str, tuple[str, ...]]] = {}  # input slot -> outputs; read only if one of them is wanted

    def infer(self, site: Site) -> dict[str, Type]:
        """Output slot -> type, for every output slot the site can have."""
        raise NotImplementedError

    def check(self, site: Site) -> None:
        """What shapes and attributes have to satisfy beyond `indices` and `legal`. Raises ValueError."""

    def reference(self, inputs: Arrays, attrs: dict[str, Any]) -> Arrays:
        """Float64 NumPy reference; gradient operations return every gradient (matrices whole)."""
        raise NotImplementedError

    def may_alias(self, site: Site) -> dict[str, str]:
        """Output slot -> input slot whose storage the result may take over, with these attributes."""
        return self.inplace

    def dims(self, site: Site) -> dict[str, int]:
        """Integer fields of the C argument struct that are shapes (name -> value)."""
        raise NotImplementedError

    def macs(self, site: Site) -> int:
        """Fused multiply-adds executed in sums of products: exactly what the kernel counts with VT_COUNT."""
        return 0

    def scratch(self, site: Site) -> int:
        """Bytes of scratch the kernel needs with these schedule attributes: exact, all of it used."""
        return 0

    def schedules(self, site: Site) -> Iterator[dict[str, Any]]:
        """Settings of the schedule attributes worth trying, fastest first, least scratch last."""
        yield {}

    def samples(self, rng: np.random.Generator) -> Iterator[Sample]:
        raise NotImplementedError

    def attr(self, site: Site, name: str) -> Any:
        """An attribute's value at this call, or its default."""
        return site.attrs.get(name, self.attrs[name][1])

    @cached_property
    def slots(self) -> dict[str, Slot]:
        """Input and output slots by name."""
        return {s.name: s for s in (*self.inputs, *self.outputs)}

    def defaults(self) -> dict[str, Any]:
        """Every attribute at its default."""
        return {name: default for name, (_, default) in self.attrs.items()}

    def updatable(self) -> set[str]:
        """Parameter slots that `Call.updates` may name."""
        fused = {s.name.removeprefix("d_") for s in self.outputs if s.name.startswith("d_") and s.kind != "tensor"}
        return fused | ({self.own_update} if self.own_update else set())


REGISTRY: dict[str, Op] = {}


def register(cls: type[Op]) -> type[Op]:
    """Class decorator: puts one instance into the registry."""
    if cls.name in REGISTRY:
        raise KeyError(f"operation {cls.name!r} is registered twice")
    REGISTRY[cls.name] = cls()
    return cls
