"""How a vision transformer lays out its tokens: prefix tokens first (class token, registers), then patches row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from algorithm.errors import AnalysisError


@dataclass(frozen=True)
class Tokens:
    """prefix: tokens before the first patch; class_token: whether the first of them is one; grid: rows, columns."""

    prefix: int = 1
    class_token: bool = True
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.prefix < int(self.class_token):
            raise AnalysisError("a model with a class token has at least one prefix token, found prefix=0")

    @classmethod
    def of(cls, model: nn.Module, images: Tensor | None = None) -> Tokens:
        """Of a timm ViT; images (B, C, H, W) give the grid where the model takes any size. Raises AnalysisError."""
        embed: Any = getattr(model, "patch_embed", None)
        if embed is None or not hasattr(embed, "patch_size"):
            raise AnalysisError(f"{type(model).__name__} has no patch_embed, so its tokens are no patches of an image: take "
                                "a vision transformer of timm")
        grid = getattr(embed, "grid_size", None)
        if images is not None and hasattr(embed, "dynamic_feat_size") and (
                grid is None or getattr(model, "dynamic_img_size", False)):
            grid = embed.dynamic_feat_size(tuple(images.shape[-2:]))
        if images is not None and grid is None:
            raise AnalysisError(f"{type(model).__name__} does not say what grid its patches form (patch_embed.grid_size): "
                                "take a plain vision transformer")
        prefix = int(getattr(model, "num_prefix_tokens", 0))
        has_class = prefix > 0 and getattr(model, "cls_token", None) is not None
        return cls(prefix, has_class, None if grid is None else (int(grid[0]), int(grid[1])))

    def patches(self, count: int) -> int:
        """The number of patches among `count` tokens."""
        if count <= self.prefix:
            raise AnalysisError(f"attention maps of {count} tokens leave no patch after {self.prefix} prefix tokens: give "
                                "the Tokens of the model that made them")
        if self.grid is not None and count - self.prefix != self.grid[0] * self.grid[1]:
            raise AnalysisError(f"attention maps of {count} tokens do not fit {self.prefix} prefix tokens and "
                                f"{self.grid[0]} x {self.grid[1]} patches: give the Tokens of the model that made them")
        return count - self.prefix

    def as_grid(self, values: Tensor) -> Tensor:
        """(..., P) -> (..., rows, columns). A square where the grid is not known. Raises AnalysisError."""
        count = int(values.shape[-1])
        side = round(count ** 0.5)
        rows, columns = self.grid or (side, side)
        if rows * columns != count:
            raise AnalysisError(f"{count} patches are no grid of {rows} x {columns}: give the Tokens of the model")
        return values.reshape(*values.shape[:-1], rows, columns)

    def patches_of(self, tokens: Tensor) -> Tensor:
        """Of a block's output (B, N, D), or (B, rows, columns, D), the patches: (B, P, D).

        Some models add their prefix tokens behind the blocks, so that here there are none. Raises AnalysisError.
        """
        flat = tokens.flatten(1, -2)
        patches = flat.shape[1] - self.prefix if self.grid is None else self.grid[0] * self.grid[1]
        before = flat.shape[1] - patches
        if before not in (0, self.prefix):
            raise AnalysisError(f"a block gives {flat.shape[1]} tokens, expected {patches} patches behind {self.prefix} "
                                "prefix tokens: take a plain vision transformer")
        return flat[:, before:]

    def from_class(self, rows: Tensor) -> Tensor:
        """What flows from the patches to the class token: maps (..., N, N) -> (..., P).

        A model without a class token pools its tokens, so there it is the mean over all queries.
        """
        self.patches(int(rows.shape[-1]))
        query = rows[..., 0, :] if self.class_token else rows.mean(dim=-2)
        return query[..., self.prefix:]


def index_of(what: str, index: int, count: int) -> int:
    """0 <= index < count, counted from the end where negative. Raises AnalysisError."""
    if not -count <= index < count:
        raise AnalysisError(f"there is no {what} {index}: the model has {count}, 0 to {count - 1} (or -1 for the last)")
    return index % count


def check_maps(maps: Sequence[Tensor]) -> None:
    """Raise AnalysisError unless these are attention maps (B, H, N, N), one a block, all of the same B and N."""
    if not maps:
        raise AnalysisError("no attention maps: the model has no block whose attention could be recorded")
    for i, m in enumerate(maps):
        first = maps[0]
        if m.ndim != 4 or m.shape[-1] != m.shape[-2] or m.shape[0] != first.shape[0] or m.shape[-1] != first.shape[-1]:
            raise AnalysisError(f"attention map of block {i} has the shape {tuple(m.shape)}, expected (images, heads, "
                                "tokens, tokens), the same images and tokens in every block")
