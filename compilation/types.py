"""What a tensor is made of: shape and element. The one place that knows sizes, and the names in C, NumPy and Relax.

Layout (panels, packed) and quantisation become further fields of `Type` when there are kernels for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Element:
    """An element type: its name in Programs, its bytes, and what it is called elsewhere.

    relax: the Relax types that it stands for; the first is the one that a tensor of it has there.
    """

    name: str
    bytes: int
    c: str
    numpy: np.dtype = field(compare=False)      # of the device's byte order, little endian
    relax: tuple[str, ...]

    def __str__(self) -> str:
        return self.name

    def of(self, count: int) -> int:
        """Bytes of `count` elements."""
        return count * self.bytes


F32 = Element("f32", 4, "float", np.dtype("<f4"), ("float32",))
I32 = Element("i32", 4, "int32_t", np.dtype("<i4"), ("int32", "int64"))     # int64: indices, which fit
U16 = Element("u16", 2, "uint16_t", np.dtype("<u2"), ("uint16",))
U8 = Element("u8", 1, "uint8_t", np.dtype("u1"), ("uint8", "bool"))         # a truth value is kept in a byte

ELEMENTS = {e.name: e for e in (F32, I32, U16, U8)}
FROM_RELAX = {name: e for e in ELEMENTS.values() for name in e.relax}

SUM = F32           # what sums of products are kept in: the element of accumulators and of scratch
INDEX = U16         # what lists of rows and columns are kept in
LABEL = I32         # a class
PIXELS = (U8, F32)  # what an image may come in
BYTES = U8          # storage of no element of its own
INDICES = 1 << 8 * INDEX.bytes      # so many rows or columns can be told apart


@dataclass(frozen=True)
class Type:
    """Shape and element of a tensor. Prints as f32[197, 384]."""

    shape: Shape
    element: Element = F32

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))

    def __str__(self) -> str:
        return f"{self.element}{list(self.shape)}"

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.element.of(self.count)

    def shaped(self, shape: Iterable[int]) -> Type:
        """The same element in another shape."""
        return Type(tuple(shape), self.element)

    def array(self, values: npt.ArrayLike) -> np.ndarray:
        """The values as an array of this type, contiguous. Raises ValueError where their number is another."""
        return np.ascontiguousarray(values, self.element.numpy).reshape(self.shape)
