"""From a PyTorch module to a plain graph: exported, cleaned of PyTorch's own machinery, and checked against the module.

`capture` exports and refuses; `regions` turns no_grad, detach and in-place operations into graph nodes; `expand` spells
operations out in simpler ones; `witness` compares values and gradients with the module itself. Nothing here knows TVM.
"""

from compilation.capture.capture import Exported, InputSpec, capture

__all__ = ["Exported", "InputSpec", "capture"]
