"""The weight matrices of a model by name, as an analysis sees them: chosen by pattern, flattened, qkv split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from algorithm.errors import AnalysisError
from algorithm.schema import nearest

QKV = ("q", "k", "v")


def weight_matrices(model: nn.Module, targets: Iterable[str] | None = None, split_qkv: bool = False) -> dict[str, Tensor]:
    """Name -> matrix (rows, columns), detached views of the model's parameters in their order.

    A linear is (outputs, inputs) under its module path ("blocks.0.attn.qkv"), a convolution (outputs, inputs x height x
    width), an embedding (tokens, features); a parameter that is no `weight` keeps its own name ("pos_embed",
    "blocks.0.attn.gram_a"). Vectors, and what has one row or one column, are no matrices. targets: endings of names
    ("attn.qkv", "pos_embed") or globs ("blocks.1?.mlp.*"), None: every matrix. split_qkv: a fused qkv is three matrices,
    "....qkv.q", ".k" and ".v". Raises AnalysisError for a target that matches nothing.
    """
    whole = {n.removesuffix(".weight"): _flat(n, p.detach()) for n, p in model.named_parameters() if p.ndim >= 2}
    whole = {n: m for n, m in whole.items() if min(m.shape) > 1}
    if not whole:
        raise AnalysisError(f"{type(model).__name__} has no weight matrix to analyse")
    known = {part: matrix for n, m in whole.items() for part, matrix in (_split(n, m) if split_qkv else {n: m}).items()}
    if targets is None:
        return known
    patterns = [targets] if isinstance(targets, str) else list(targets)
    if not patterns:
        raise AnalysisError("no target is given: name endings of matrices (attn.qkv, mlp.fc1), or leave targets out for all")
    for p in patterns:
        if not any(matches(n, p) for n in known):
            raise AnalysisError(f"spectrum target {p!r} names no weight matrix{nearest(p, _offers(known))}")
    return {n: m for n, m in known.items() if any(matches(n, p) for p in patterns)}


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a matrix: by the end of its name at a dot, or as a glob, of a qkv also the parts."""
    pattern = pattern.removesuffix(".weight")
    stem, _, part = name.rpartition(".")
    names = (name, stem) if part in QKV and stem.endswith("qkv") else (name,)
    return any(fnmatchcase(n, p) for n in names for p in (pattern, f"*.{pattern}"))


def kind_of(name: str) -> str:
    """The type of a matrix: what its name says behind the last index. "blocks.3.attn.qkv" -> "attn.qkv"."""
    parts = name.split(".")
    after = max((i + 1 for i, p in enumerate(parts) if p.isdigit()), default=0)
    return ".".join(parts[after:]) or name


def layer_of(name: str) -> str:
    """The part of the model that a matrix is in: "blocks.3.attn.qkv" -> "blocks.3", "head" -> "head"."""
    kind = kind_of(name)
    return name if kind == name else name[:-len(kind) - 1]


def _flat(name: str, value: Tensor) -> Tensor:
    """A module's weight (O, C, h, w) -> (O, C h w), any other table (1, h, w, D) -> (h w, D)."""
    return value.flatten(1) if name.endswith(".weight") else value.reshape(-1, value.shape[-1])


def _split(name: str, matrix: Tensor) -> Mapping[str, Tensor]:
    if name.rpartition(".")[2] != "qkv" or matrix.shape[0] % 3:
        return {name: matrix}
    return dict(zip((f"{name}.{part}" for part in QKV), matrix.chunk(3), strict=True))


def _offers(known: Mapping[str, Any]) -> list[str]:
    """What a mistyped target may have meant: the types, then the names."""
    return list(dict.fromkeys([*map(kind_of, known), *known]))
