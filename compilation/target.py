"""What the compiler knows of a core: how its kernels are tiled and what a tile costs.

The tiles that the kernels know are the same on every core, for scratch, work and results must be; the generated C checks
that the kernels agree (`runtime.codegen`). What a multiply-accumulate costs in a tile of some shape is a core's own, and
what the search minimises: estimated time, in multiply-accumulates of full tiles.

Measured with the kernels alone (zig 0.16, -O3, the compiler's own flags; in multiply-accumulates of full tiles):

    a tile of 1, 2, 4, 8, 16 lanes   host, AVX-512, ns of own CPU: a full one 0.0171 each    Cortex-M7, instructions: 1.93
    linear, by tokens                 10.8   5.4   2.8   1.5   1.0                            1.95  1.28  1.03  1.01  1.0
    linear_grad d_x, by tokens (rows)  2.7   2.7   1.1   1.0   1.0                            1.29  1.27  1.03  1.02  1.02
    attention, by queries             26.2  14.1   8.1   3.7   2.3                            4.8   3.0   1.8   1.7   1.6
    attention_grad, by queries        11.8   7.5   4.2   2.8   2.2                            4.7   3.6   2.0   1.6   1.4

    a result of a product, each call   6 to 22                                                7 to 12
    an element of: an addition          3.4                                                   2.3
                   layer_norm, its gradient   20 to 40, 36                                    10 to 15, 26
                   gelu, its gradient   48, 76                                                48, 75
                   sigmoid, silu, tanh        not measured                                    23, 23, 31
    an exponential of attention        about 120                                              82
    a call                             1,700                                                  250
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

TILES = (16, 8, 4, 2, 1)            # tokens at a time
FEATURES = (128, 64, 32, 16, 4, 1)  # features at a time that are worth trying
KEYS, QUERIES = 16, 16              # VT_KEYS: keys that attention takes at a time; VT_QUERIES: the most queries of one call
STAGE = 16                          # VT_STAGE: columns that a weight gradient makes again at a time


Numbers = Any           # a number or an array of them
Extent = tuple[Numbers, Numbers]


@dataclass(frozen=True)
class Target:
    """A core. Times are in multiply-accumulates of full tiles.

    lanes, rows: of one multiply-accumulate in a tile so wide (values side by side) and so tall, by (elements, time),
    ascending. result: to begin and end one sum of a call. element: of one addition of two tensors. call: of a kernel's call.
    """

    name: str
    lanes: tuple[tuple[int, float], ...]
    rows: tuple[tuple[int, float], ...]
    result: float
    element: float
    call: float
    _tables: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    def time(self, products: Numbers, elements: Numbers, calls: Numbers, effort: int | None = None) -> Numbers:
        """Of some calls. products: their multiply-accumulates' time; elements: results of products (effort None), else
        of what takes so many additions more than one each."""
        return products + elements * (self.result if effort is None else self.element * (1 + effort)) + calls * self.call

    def product(self, lanes: Extent, rows: Extent) -> Numbers:
        """The mean time of a multiply-accumulate where so many lanes, and rows, are walked in such steps: (all, step)."""
        return self._mean("lanes", *lanes) * self._mean("rows", *rows)

    def _mean(self, which: str, size: Numbers, step: Numbers) -> Numbers:
        if which not in self._tables:
            self._tables[which] = _whole(getattr(self, which))
        table = self._tables[which]
        most = len(table) - 1

        def whole(n: Numbers) -> Numbers:
            return n // most * table[most] + table[n % most]

        return (size // step * whole(step) + whole(size % step)) / size


def _whole(prices: tuple[tuple[int, float], ...]) -> np.ndarray:
    """The time of n elements, n from 0 to those of the largest tile: in one tile that is large enough, or in several."""
    tiles = [(size, size * price) for size, price in prices]
    times = [0.0]
    for n in range(1, tiles[-1][0] + 1):
        times.append(min(time + times[max(0, n - size)] for size, time in tiles))
    return np.array(times)


HOST = Target("host", ((1, 10.8), (2, 5.4), (4, 2.8), (8, 1.5), (16, 1.0)), ((1, 2.7), (2, 2.2), (4, 1.1), (8, 1.0)),
              result=14, element=4, call=1700)
CORTEX_M = Target("cortex-m", ((1, 1.95), (2, 1.28), (4, 1.03), (8, 1.01), (16, 1.0)), ((1, 1.3), (2, 1.25), (4, 1.0)),
                  result=9, element=2, call=250)
TARGETS = {t.name: t for t in (HOST, CORTEX_M)}
