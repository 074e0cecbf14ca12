"""python -m algorithm infer: what a checkpoint sees in an image, or in every image of a folder."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from algorithm.commands.arguments import Parser
from algorithm.commands.opening import add_opening_flags, class_names, eval_transform_of, open_model, read_request
from algorithm.commands.output import emit_json, show
from algorithm.data.folders import SUFFIXES
from algorithm.errors import ConfigError, DataError

EPILOG = """\
examples
  python -m algorithm infer --checkpoint work/x --input cat.jpg
  python -m algorithm infer --checkpoint work/x --input FOLDER --top-k 3 --json -
  python -m algorithm infer --model vit_tiny_patch16_224 --checkpoint timm.safetensors --input cat.jpg

an image that cannot be read is named and left out; the status is 1 where none could be
"""


def parser() -> Parser:
    p = Parser("infer", "What a checkpoint sees in an image, or in a folder of them.", EPILOG)
    add_opening_flags(p)
    p.add_argument("--input", metavar="PATH", required=True, help="an image, or a folder (with all below it)")
    p.add_argument("--top-k", type=int, default=5, metavar="K", help="classes an image (5, or as many as there are)")
    p.add_argument("--json", metavar="FILE", help="as JSON; - for the standard output")
    return p


def run(options: argparse.Namespace) -> int:
    if options.top_k < 1:
        raise ConfigError(f"--top-k {options.top_k} shows nothing: give 1 or more")
    files = image_files(Path(options.input))
    asked = read_request(options)
    from algorithm.journal import Journal
    journal = Journal()
    model = open_model(asked)
    size = asked.experiment.recipe.batch_eval or asked.experiment.recipe.batch
    results: list[dict[str, Any]] = []
    for paths, logits in _batches(model, eval_transform_of(asked, model), files, size, journal.say):
        names = class_names(asked, (), logits.shape[1])
        top = logits.double().softmax(1).topk(min(options.top_k, len(names)))
        for path, shares, places in zip(paths, top.values.tolist(), top.indices.tolist(), strict=True):
            results.append({"image": str(path), "classes": [{"class": names[i], "probability": p}
                                                            for p, i in zip(shares, places, strict=True)]})
    if not results:
        raise DataError(f"no image of {options.input} can be read")
    if options.json != "-":
        show(_table(results))
    emit_json(results, options.json)
    return 0


def image_files(path: Path) -> list[Path]:
    """The file, or the images at any depth of a folder by name. Raises DataError."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"no image at {path}: give a file or a folder")
    found = [Path(folder) / name for folder, below, names in os.walk(path) if _visible(below)
             for name in names if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES]
    if not found:
        raise DataError(f"{path} holds no image ({', '.join(sorted(SUFFIXES))})")
    return sorted(found)


def _visible(below: list[str]) -> bool:
    """Keep hidden folders out of the walk."""
    below[:] = [name for name in below if not name.startswith(".")]
    return True


def _batches(model: Any, transform: Any, files: list[Path], size: int, say: Any) -> Iterator[tuple[list[Path], Any]]:
    """(paths, logits (B, K) on the CPU) of those images that can be read; say: told of the others."""
    import torch

    from algorithm.data.broken import BrokenImage
    from algorithm.data.streams import open_rgb
    device = next(model.parameters()).device
    for start in range(0, len(files), size):
        paths, images = [], []
        for path in files[start:start + size]:
            try:
                images.append(transform(open_rgb(path)))
                paths.append(path)
            except BrokenImage as error:
                say(f"{error}; it is left out")
        if paths:
            with torch.inference_mode():
                yield paths, model(torch.stack(images).to(device)).float().cpu()


def _table(results: list[dict[str, Any]]) -> Any:
    from algorithm.analysis.tables import Table, share
    return Table("what the images show", ["image", "class", "probability"], [
        [r["image"] if not k else "", c["class"], share(c["probability"])]
        for r in results for k, c in enumerate(r["classes"])])
