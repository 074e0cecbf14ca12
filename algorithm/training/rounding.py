"""Float32 arithmetic with random rounding: what another correct float32 program might have computed.

Monte Carlo arithmetic (Parker, "Monte Carlo Arithmetic", 1997; Denis et al., "Verificarlo", 2016): every result of an
arithmetic operation, forward and backward, is moved by -1, 0 or +1 unit in the last place at random. Runs with
different seeds then differ as correct programs differ that order their sums in other ways, use other elementary
functions or fuse other operations; their spread says what float32 leaves open on this model, data and number of steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

UNIT = 2.0 ** -23           # relative: one unit in the last place of a float32 in [1, 2)
FACTORS = 1 << 20           # random factors made once and read from random places

# Results that are copies of inputs, or constants: nothing is rounded there.
_EXACT = frozenset(("_to_copy", "_unsafe_view", "arange", "cat", "clone", "constant_pad_nd", "copy", "embedding", "empty",
                    "empty_like", "fill", "flip", "full", "full_like", "gather", "index", "index_select", "lift_fresh",
                    "masked_fill", "max_pool2d_with_indices", "neg", "new_zeros", "ones", "ones_like", "relu", "repeat",
                    "select_backward", "slice_backward", "stack", "threshold_backward", "where", "zeros", "zeros_like"))


class RandomRounding(TorchDispatchMode):
    """A context in which every float32 operation of torch rounds at random (in-place updates excepted).

    seed: two contexts with one seed round alike, whatever machine they run on.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        steps = torch.randint(-1, 2, (FACTORS,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
        self._factors = 1.0 + steps.float() * UNIT
        self._places = np.random.default_rng(seed)

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Sequence[Any] = (),
                           kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.rpartition("::")[2]
        if not (func.is_view or func._schema.is_mutable or name in _EXACT):
            for value in result if isinstance(result, tuple | list) else (result,):
                if isinstance(value, Tensor) and value.dtype == torch.float32 and value.numel():
                    self._round(value)
        return result

    def _round(self, value: Tensor) -> None:
        """Move each element by up to a unit in the last place; the result was just made, nobody else holds it."""
        count = value.numel()
        if self._factors.device != value.device:
            self._factors = self._factors.to(value.device)
        if count > len(self._factors):
            self._factors = self._factors.repeat(-(-count // len(self._factors)))
        at = int(self._places.integers(0, len(self._factors) - count + 1))
        value.mul_(self._factors[at:at + count].view(value.shape))
