"""The operations: importing this package fills REGISTRY."""

from compilation.ops import (
    attention,
    attn_block,
    elementwise,
    embed,
    gram,
    linear,
    loss,
    mlp_block,
    normalisation,
    optimiser,
    rows,
)
from compilation.ops.base import REGISTRY, Cost, Op, Sample, Site, Slot

__all__ = ["REGISTRY", "Cost", "Op", "Sample", "Site", "Slot", "attention", "attn_block", "elementwise", "embed",
           "gram", "linear", "loss", "mlp_block", "normalisation", "optimiser", "rows"]
