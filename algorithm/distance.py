"""How far a trained tensor is from where it should be: three numbers, each with a sharp eye for one kind of fault.

Used for float32 PyTorch (`training/trace.py`) and for the C run (`runtime/verdict.py`) alike. No torch in here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Distance:
    """Of an error e of n elements, where training changed the tensor by m: all in the unit of the weights.

    largest: max |e|, finds one wrong element. rms: sqrt(mean e^2), finds a small fault of many elements. along:
    |e . m| / |m|, the error along the update; rounding in independent directions has along = rms on average, while an
    update that is too long by the share s has along = s sqrt(n) rms(m).
    """

    largest: float
    rms: float
    along: float


def distance(error: np.ndarray, moved: np.ndarray) -> Distance:
    """The distance of an error (any shape); moved: the tensor's right change, of the same shape. NaN stays NaN."""
    e, m = error.astype(np.float64).ravel(), moved.astype(np.float64).ravel()
    if not e.size:
        return Distance(0.0, 0.0, 0.0)
    length = float(np.linalg.norm(m))
    return Distance(float(np.max(np.abs(e))), float(np.sqrt(np.mean(e * e))),
                    abs(float(e @ m)) / length if length > 0 else 0.0)
