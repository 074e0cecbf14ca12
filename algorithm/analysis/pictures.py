"""Images with what the model sees in them: attention, saliency, position embeddings. PNG or SVG, by the path's ending.

images are (B, H, W, 3) in [0, 1] (`shown` makes them from a model's input); maps are arrays, and each picture scales its
own colours, so brightness compares within a panel unless its text says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from algorithm.analysis.style import ORDERED, SIGNED, bare, drawing, short
from algorithm.errors import AnalysisError

CELL = 1.35                 # inches of a panel
MOST_POSITIONS = 16         # a side, of the grid of grids


def shown(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """A model's input (B, 3, H, W) -> (B, H, W, 3) in [0, 1], the normalisation undone."""
    pixels = images.detach().float().cpu().permute(0, 2, 3, 1).numpy() * np.asarray(std) + np.asarray(mean)
    return np.clip(pixels, 0, 1)


def overlays(path: str | Path, images: np.ndarray, maps: Any, title: str, captions: Sequence[str] = (),
             columns: Sequence[str] = ()) -> None:
    """A row an image: the image, then its maps laid over it. maps (B, h, w) or (B, K, h, w); columns name the K maps.

    For attention maps on samples (K layers or heads) and for the rollout. One map an image stands below it.
    """
    def draw(axes: Axes, image: np.ndarray, heat: np.ndarray) -> None:
        axes.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=1)
        whole = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
        axes.imshow(heat, cmap="inferno", alpha=0.62, interpolation="bilinear", extent=whole)
    _grid(path, images, _maps(images, maps), title, captions, columns, draw)


def heat_grid(path: str | Path, images: np.ndarray, maps: Any, title: str, captions: Sequence[str] = (),
              columns: Sequence[str] = ()) -> None:
    """A row an image: the image, then its maps (B, K, h, w) by themselves, a cell a patch: the class token's attention of
    each layer, where single bright cells are what Darcet et al. call artefacts."""
    def draw(axes: Axes, image: np.ndarray, heat: np.ndarray) -> None:
        axes.imshow(heat, cmap=ORDERED)
    _grid(path, images, _maps(images, maps), title, captions, columns, draw)


def saliency_rows(path: str | Path, images: np.ndarray, maps: Mapping[str, Any], title: str,
                  captions: Sequence[str] = ()) -> None:
    """A row an image: the image, then each named map (B, H, W). One with negative values is drawn about 0, blue to red.

    The colours end at the 99th percentile of a panel, since single pixels would darken all others.
    """
    def draw(axes: Axes, image: np.ndarray, heat: np.ndarray) -> None:
        end = float(np.percentile(np.abs(heat), 99)) or 1.0
        signed = bool((heat < 0).any())
        axes.imshow(heat, cmap=SIGNED if signed else "inferno", vmin=-end if signed else 0, vmax=end)
    values = _maps(images, np.stack([_array(m) for m in maps.values()], axis=1))
    _grid(path, images, values, title, captions, list(maps), draw)


def position_grid(path: str | Path, similarity: Any, title: str = "How alike the position embeddings are") -> None:
    """similarity (r, c, r, c): a small map for each patch, at its place, of its cosine with all patches. Beyond 16 a side
    every second, third ... patch is drawn."""
    values = _array(similarity)
    if values.ndim != 4 or values.shape[:2] != values.shape[2:]:
        raise AnalysisError(f"position similarity has the shape {values.shape}, expected (rows, columns, rows, columns)")
    rows, columns = values.shape[:2]
    step = -(-max(rows, columns) // MOST_POSITIONS)
    kept = values[::step, ::step]
    gap = max(1, rows // 12)
    mosaic = np.full((kept.shape[0] * (rows + gap) - gap, kept.shape[1] * (columns + gap) - gap), np.nan)
    for i in range(kept.shape[0]):
        for j in range(kept.shape[1]):
            top, left = i * (rows + gap), j * (columns + gap)
            mosaic[top:top + rows, left:left + columns] = kept[i, j]
    with drawing(path, title, 7.2, 6.6) as figure:
        axes = bare(figure.add_subplot())
        drawn = axes.imshow(mosaic, cmap=ORDERED, vmin=min(0.0, float(values.min())), vmax=1)
        every = "every patch" if step == 1 else f"every {step}. patch"
        axes.set_xlabel(f"{every} at its place; each small map: its cosine with all {rows} x {columns} patches")
        figure.colorbar(drawn, ax=axes, shrink=0.8, label="cosine")


def _array(values: Any) -> np.ndarray:
    return values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _maps(images: np.ndarray, maps: Any) -> np.ndarray:
    """(B, K, h, w). Raises AnalysisError where images and maps do not belong together."""
    values = _array(maps)
    values = values[:, None] if values.ndim == 3 else values
    if images.ndim != 4 or images.shape[-1] != 3 or values.ndim != 4 or len(values) != len(images) or not values.size:
        raise AnalysisError(f"cannot draw maps {values.shape} on images {images.shape}: expected (images, maps, height, "
                            "width) and (images, height, width, 3)")
    return values


def _grid(path: str | Path, images: np.ndarray, maps: np.ndarray, title: str, captions: Sequence[str],
          columns: Sequence[str], draw: Callable[[Axes, np.ndarray, np.ndarray], None]) -> None:
    """A row an image: itself, then `draw(axes, image, map)` for each of its maps. A single map goes below its image."""
    count = maps.shape[1]
    across = count == 1
    rows, wide = (2, len(images)) if across else (len(images), 1 + count)
    room = 0.9 if captions or across else 0.3
    with drawing(path, title, CELL * wide + room, CELL * rows + 0.9) as figure:
        for i, image in enumerate(images):
            for k, heat in enumerate([None, *maps[i]]):
                row, column = (k, i) if across else (i, k)
                axes = bare(figure.add_subplot(rows, wide, row * wide + column + 1))
                if heat is None:
                    axes.imshow(image)
                else:
                    draw(axes, image, heat)
                of_map, of_image = ["image", *columns][k:k + 1], [short(c) for c in captions[i:i + 1]]
                top, left = (of_image, of_map) if across else (of_map, of_image)
                if row == 0:
                    axes.set_title("".join(top), fontsize=9, loc="center")
                if column == 0:
                    axes.set_ylabel("".join(left), fontsize=9, rotation=0, ha="right", va="center")
