"""python -m algorithm analyze spectrum|artifacts: look inside a checkpoint, or a model of timm."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from algorithm.commands.arguments import Parser
from algorithm.commands.opening import Asked, add_opening_flags, eval_transform_of, open_model, read_request
from algorithm.commands.output import emit_json, show
from algorithm.errors import ConfigError
from algorithm.schema import parse

KINDS = {"spectrum": "singular values of the weight matrices, by layer and by type",
         "artifacts": "norms of the last layer's patch tokens: high ones are artefacts"}
EPILOG = "what to look at\n" + "\n".join(f"  {kind:12}{about}" for kind, about in KINDS.items()) + """

examples
  python -m algorithm analyze spectrum --checkpoint work/x --split-qkv --json spectrum.json
  python -m algorithm analyze spectrum --checkpoint work/x --targets attn.qkv mlp.fc1 --full --dtype float64 --vectors s.npz
  python -m algorithm analyze artifacts --checkpoint work/x --images 64 --pictures pictures
"""
OF_SPECTRUM = ("targets", "split_qkv", "topk", "interval", "full", "dtype", "svd_on_cpu")
OF_ARTIFACTS = ("images", "sigmas", "grid_images")
IMAGES = 256            # held-out ones that artifacts looks at


def parser() -> Parser:
    p = Parser("analyze WHAT", "Look inside a checkpoint, or a model of timm.", EPILOG)
    p.add_argument("kind", metavar="WHAT", choices=list(KINDS), help=", ".join(KINDS))
    p.add_argument("--json", metavar="FILE", help="the figures as JSON; - for the standard output")
    p.add_argument("--vectors", metavar="FILE.npz", help="the arrays, .npz or (of spectrum) .pt: singular values and "
                   "vectors; of artifacts the norms and the class token's attention")
    p.add_argument("--pictures", metavar="FOLDER", help="draw them")
    spectrum = p.add_argument_group("spectrum")
    spectrum.add_argument("--targets", nargs="+", metavar="NAME", help="matrices by name ending or pattern; by itself all")
    spectrum.add_argument("--split-qkv", action="store_true", default=None, help="q, k and v apart")
    spectrum.add_argument("--topk", type=int, metavar="K", help="values from either end (10)")
    spectrum.add_argument("--interval", type=int, metavar="N", help="between the listed values (1)")
    spectrum.add_argument("--full", action="store_true", default=None, help="all values")
    spectrum.add_argument("--dtype", choices=["float32", "float64"], help="of the computation (float32)")
    spectrum.add_argument("--svd-on-cpu", action="store_true", default=None, help="decompose on the CPU")
    artifacts = p.add_argument_group("artifacts")
    artifacts.add_argument("--images", type=int, metavar="N", help=f"held-out images that are looked at ({IMAGES})")
    artifacts.add_argument("--sigmas", type=float, metavar="S", help="beyond mean + S standard deviations is an outlier (3)")
    artifacts.add_argument("--grid-images", type=int, metavar="N", help="images in the picture of attention (6)")
    add_opening_flags(p, needs_file=False)
    return p


def run(options: argparse.Namespace) -> int:
    wrong = OF_ARTIFACTS if options.kind == "spectrum" else OF_SPECTRUM
    vain = next((n for n in wrong if getattr(options, n) is not None), None)
    if vain is not None:
        raise ConfigError(f"--{vain.replace('_', '-')} has no effect on analyze {options.kind}: leave it out")
    return _spectrum(options) if options.kind == "spectrum" else _artifacts(options)


def _spectrum(options: argparse.Namespace) -> int:
    from algorithm.analysis.config import SpectrumConfig
    given = {n: getattr(options, n) for n in OF_SPECTRUM if getattr(options, n) is not None}
    config = parse(SpectrumConfig, {**given, "vectors": options.vectors is not None}, "analyze spectrum")
    asked = read_request(options)
    from algorithm.analysis.analyze import analyze_spectrum
    result = analyze_spectrum(open_model(asked), config)
    _give(options, result, result.table(), result.type_table())
    if options.pictures:
        result.draw(options.pictures)
    return 0


def _artifacts(options: argparse.Namespace) -> int:
    from algorithm.analysis.config import ArtifactsConfig
    given = {"sigmas": options.sigmas, "grid_images": options.grid_images}
    config = parse(ArtifactsConfig, {k: v for k, v in given.items() if v is not None}, "analyze artifacts")
    if options.images is not None and options.images < 1:
        raise ConfigError(f"--images {options.images} looks at nothing: give 1 or more")
    asked = read_request(options)
    from algorithm.analysis.analyze import analyze_artifacts
    from algorithm.analysis.pictures import shown
    from algorithm.models import normalisation
    model = open_model(asked)
    images, captions = _held_out(asked, model, options.images or IMAGES)
    result = analyze_artifacts(model, images, config)
    _give(options, result, result.table())
    if options.pictures:
        few = images[:config.grid_images]
        result.draw(options.pictures, shown(few, *normalisation(model)), captions[:len(few)])
    return 0


def _held_out(asked: Asked, model: Any, count: int) -> tuple[Any, list[str]]:
    """(images (B, 3, H, W) on the model's device, their classes): held-out ones, spread over the data set."""
    import numpy as np
    import torch

    from algorithm.data.streams import open_streams
    _, stream = open_streams(asked.experiment.data)
    stream.transform = eval_transform_of(asked, model)
    places = np.unique(np.linspace(0, len(stream) - 1, min(count, len(stream))).astype(int))
    images = torch.stack([stream[int(i)][0] for i in places]).to(next(model.parameters()).device)
    return images, [stream.classes[stream.labels[i]] for i in places]


def _give(options: argparse.Namespace, result: Any, *tables: Any) -> None:
    """Tables, or JSON, on the standard output; files where they are asked for. With arrays the JSON is always a file."""
    if options.json == "-":
        emit_json(result.as_json(), "-")
    else:
        show(*tables)
    file = options.json if options.json not in (None, "-") else None
    if options.vectors and file is None:
        file = Path(options.vectors).with_suffix(".json")
    if file is not None:
        result.save(file, options.vectors)
