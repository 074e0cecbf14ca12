"""The operations: importing this package fills REGISTRY."""

from compilation.ops import (
    attention,
    buffers,
    columns,
    elementwise,
    embed,
    linear,
    loss,
    matmul,
    normalisation,
    optimiser,
    rows,
)
from compilation.ops.base import REGISTRY, Op, Sample, Site, Slot

__all__ = ["REGISTRY", "Op", "Sample", "Site", "Slot", "attention", "buffers", "columns", "elementwise", "embed",
           "linear", "loss", "matmul", "normalisation", "optimiser", "rows"]
