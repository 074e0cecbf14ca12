"""Looking inside a model: attention, saliency, high-norm tokens, position embeddings, spectra; pictures and the report.

Pure functions on (model, tensors) that return arrays, functions that draw these into files, and the report of a training
by recipe. Nothing here trains or logs. Loaded on first use; `saliency` is a module, its function is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from algorithm.lazy import loader

if TYPE_CHECKING:
    from algorithm.analysis.artifacts import last_layer_tokens, norm_statistics, token_norms
    from algorithm.analysis.attention import cls_to_patch, cls_to_patch_layers, rollout
    from algorithm.analysis.positions import position_similarity
    from algorithm.analysis.spectrum import Spectrum, change, measure, metrics
    from algorithm.analysis.tokens import Tokens

_HOMES: dict[str, tuple[str, ...]] = {
    "artifacts": ("last_layer_tokens", "norm_statistics", "token_norms"),
    "attention": ("cls_to_patch", "cls_to_patch_layers", "rollout"), "positions": ("position_similarity",),
    "spectrum": ("Spectrum", "change", "measure", "metrics"), "tokens": ("Tokens",)}
__getattr__ = loader(__name__, _HOMES)
__all__ = ["Spectrum", "Tokens", "change", "cls_to_patch", "cls_to_patch_layers", "last_layer_tokens", "measure", "metrics",
           "norm_statistics", "position_similarity", "rollout", "token_norms"]
