"""The operations: importing this package fills REGISTRY."""

from compilation.ops import (
    attention,
    attn_block,
    buffers,
    columns,
    elementwise,
    embed,
    gram,
    heads,
    linear,
    loss,
    matmul,
    mlp_block,
    normalisation,
    optimiser,
    packed_attention,
    rows,
)
from compilation.ops.base import REGISTRY, Op, Sample, Site, Slot

__all__ = ["REGISTRY", "Op", "Sample", "Site", "Slot", "attention", "attn_block", "buffers", "columns", "elementwise",
           "embed", "gram", "heads", "linear", "loss", "matmul", "mlp_block", "normalisation", "optimiser",
           "packed_attention", "rows"]
