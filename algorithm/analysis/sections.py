"""The sections of a training's report, each from what its work folder has; None where it has nothing."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from algorithm.analysis.charts import confusion
from algorithm.analysis.records import Records, latest, series
from algorithm.analysis.spectrum_charts import spectra_over_steps
from algorithm.analysis.tables import Table, figure, share
from algorithm.analysis.training_charts import activations_over_steps, curves, gram_over_steps, histograms_over_steps
from algorithm.errors import AnalysisError

MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}
PER_CLASS = "per_class_accuracy/"
HISTOGRAMS = {"Params": "weights", "Gradients": "gradients", "Updates": "updates", "ActivationsHist": "activations"}
VISUALS, ARTIFACTS = "Vis/", ("l2_norm_histogram", "cls_to_patch_grid")
PICTURES = {  # how the name of a picture's metric ends (a pattern) -> what it shows
    "attention_map_samples": "The attention of the class token to the patches, mean over heads, by layer.",
    "attention_cls_to_patch_layer*": "The same of single heads.",
    "attention_rollout_samples": "Attention multiplied through all layers (Abnar & Zuidema 2020).",
    "saliency_maps": "What the score of the class depends on: the gradient, and gradient times input.",
    "pos_embedding_similarity": "The cosine of each patch's position embedding with that of every other patch.",
    "l2_norm_histogram": "Norms of the last layer's patch tokens; artefacts lie beyond the dashed line.",
    "cls_to_patch_grid": "The attention of the class token by layer, a cell a patch; artefacts are single bright cells.",
}


@dataclass(frozen=True)
class Inlined:
    """A picture inside the page: `source` is its data URI."""

    source: str
    alt: str
    caption: str = ""

    @classmethod
    def of(cls, path: Path, alt: str, caption: str = "") -> Inlined:
        """Raises AnalysisError where the file is no picture or cannot be read."""
        try:
            data = base64.b64encode(path.read_bytes()).decode("ascii")
        except OSError as error:
            raise AnalysisError(f"cannot read the picture {path}: {error.strerror or error}") from None
        return cls(f"data:{MEDIA[path.suffix]};base64,{data}", alt, caption)

    @classmethod
    def drawn(cls, alt: str, draw: Callable[[Path], object]) -> Inlined:
        """What `draw` writes, as SVG."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture.svg"
            draw(path)
            return cls.of(path, alt)


@dataclass(frozen=True)
class Section:
    """A titled part of the page. more: pictures behind a fold, text: plain text behind one."""

    title: str
    note: str = ""
    pictures: Sequence[Inlined] = ()
    tables: Sequence[Table] = ()
    more: Sequence[Inlined] = ()
    more_title: str = ""
    text: str = ""

    @property
    def anchor(self) -> str:
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")


def curves_section(records: Records) -> Section | None:
    try:
        return Section("Training", "Loss, accuracy, learning rate and norms over the updates.",
                       [Inlined.drawn("curves", lambda path: curves(path, records, "Training"))])
    except AnalysisError:       # none of them was recorded
        return None


def classes_section(records: Records, prefix: str = "Val") -> Section | None:
    """Confusion matrix and the accuracy of each class, of the last evaluation."""
    found = latest(records, "Charts/confusion_matrix")
    pictures = []
    if isinstance(found, Mapping):
        names = [str(c) for c in found["classes"]]
        matrix = np.zeros((len(names),) * 2)
        for i, j, count in found["cells"]:
            matrix[i, j] = count
        pictures = [Inlined.drawn("confusion matrix", lambda path: confusion(path, matrix, names))]
    start = f"{prefix}/{PER_CLASS}"
    rows = []
    for name in (n for n in records if n.startswith(start)):
        _, values = series(records, name)
        if values:
            rows.append([name.removeprefix(start), share(values[-1]), share(max(values))])
    if not pictures and not rows:
        return None
    tables = [Table("Accuracy of each class", ["class", "last evaluation", "best"], rows)] if rows else []
    return Section("Classes", "Of the last evaluation on the held-out images.", pictures, tables)


def gram_section(records: Records) -> Section | None:
    return _charted(records, "GramLowRank/", "Gram residual", "How large the residual T is beside the attention's own "
                    "output Z, and the norms of its matrices. B starts as zeros.", gram_over_steps)


def activations_section(records: Records) -> Section | None:
    return _charted(records, "Activations/", "Activations", "What attention and MLP of each block give.",
                    activations_over_steps)


def spectra_section(records: Records) -> Section | None:
    pictures = [Inlined.drawn(title, lambda path, p=prefix, t=title: spectra_over_steps(path, records, p, t))  # type: ignore[misc]
                for prefix, title in (("spec", "Spectra over the training"), ("spec_ema", "Spectra of the moving average"))
                if any(n.startswith(f"{prefix}/") for n in records)]
    return Section("Spectra", "Singular values and vectors of the weight matrices against the measurement before.",
                   pictures) if pictures else None


def histograms_section(records: Records) -> Section | None:
    found = [Inlined.drawn(title, lambda path, k=kind, t=title: histograms_over_steps(path, records, k, t))  # type: ignore[misc]
             for kind, words in HISTOGRAMS.items() if any(n.startswith(f"{kind}/") for n in records)
             for title in [f"Distribution of {words}"]]
    return Section("Distributions", "Median of a tensor's values, in a band from the 5th to the 95th percentile.",
                   found) if found else None


def pictures_of(folder: Path) -> dict[str, list[Path]]:
    """Metric -> its pictures below pictures/, by step. A name is a folder of steps (Vis/saliency_maps/00000100.png), or a
    file."""
    root = folder / "pictures"
    found: dict[str, list[Path]] = {}
    for path in sorted(p for p in root.rglob("*") if p.suffix in MEDIA and not p.name.startswith(".")):
        steps = path.stem.isdigit() and path.parent != root
        found.setdefault((path.parent if steps else path.with_suffix("")).relative_to(root).as_posix(), []).append(path)
    return found


def visuals_section(pictures: Mapping[str, Sequence[Path]]) -> Section | None:
    return _gallery("What the model sees", "Drawn while training, on fixed held-out images. All steps are in pictures/.",
                    {n: paths for n, paths in pictures.items() if n.startswith(VISUALS)})


def artifacts_section(records: Records, pictures: Mapping[str, Sequence[Path]]) -> Section | None:
    """Norms of the last layer's patch tokens, first and last, and their pictures."""
    rows = [[text, figure(values[0]), figure(values[-1])] for name, text in
            (("l2_norm_mean", "mean norm"), ("l2_norm_std", "standard deviation"), ("l2_outlier_ratio", "share of outliers"))
            for values in [series(records, name)[1]] if values]
    drawn = {n: paths for n, paths in pictures.items() if n in ARTIFACTS}
    return _gallery("High-norm tokens", "L2 norms of the last layer's patch tokens. Outliers lie beyond mean + 3 standard "
                    "deviations: patches that a model without registers uses as scratch space (Darcet et al. 2024).", drawn,
                    [Table("Norms", ["", "first", "last"], rows)] if rows else [])


def other_pictures_section(pictures: Mapping[str, Sequence[Path]]) -> Section | None:
    return _gallery("Further pictures", "", {n: paths for n, paths in pictures.items()
                                             if n not in ARTIFACTS and not n.startswith(VISUALS)})


def _gallery(title: str, note: str, pictures: Mapping[str, Sequence[Path]], tables: Sequence[Table] = ()) -> Section | None:
    """Of each name the last picture, and behind a fold the first."""
    last = [Inlined.of(paths[-1], name, _caption(name, paths)) for name, paths in pictures.items()]
    first = [Inlined.of(paths[0], f"{name}, first", f"{name}, the first of {len(paths)}")
             for name, paths in pictures.items() if len(paths) > 1]
    return Section(title, note, last, tables, first, "The first ones, for comparison") if last or tables else None


def figures_section(records: Records) -> Section:
    """Every number that was recorded: first, last, smallest, largest."""
    rows = []
    for name in sorted(records):
        steps, values = series(records, name)
        if values:
            rows.append([name, str(len(steps)), *map(figure, (values[0], values[-1], min(values), max(values)))])
    return Section("Figures", tables=[Table("Every number of metrics.jsonl",
                                            ["metric", "records", "first", "last", "smallest", "largest"], rows)])


def checkpoints_section(folder: Path) -> Section | None:
    """Each checkpoint of the folder: its size, and the plain values of its metadata."""
    rows = []
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            with safe_open(str(path), framework="np") as file:
                metadata, tensors = file.metadata() or {}, len(list(file.keys()))
        except (OSError, SafetensorError) as error:
            rows.append([path.relative_to(folder).as_posix(), "", "", f"cannot be read ({str(error).splitlines()[0][:60]})"])
            continue
        rows.append([path.relative_to(folder).as_posix(), f"{path.stat().st_size:,}", str(tensors),
                     ", ".join(f"{k} {v}" for k, v in sorted(_plain(metadata).items()))])
    return Section("Checkpoints", tables=[Table("Files", ["file", "bytes", "tensors", "says"], rows)]) if rows else None


def _plain(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Those of the JSON values that are short: numbers and words."""
    out: dict[str, Any] = {}
    for key, text in metadata.items():
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if isinstance(value, (int, float, str)) and len(str(value)) <= 40:
            out[key] = value
    return out


def _charted(records: Records, prefix: str, title: str, note: str, draw: Callable[..., None]) -> Section | None:
    if not any(n.startswith(prefix) for n in records):
        return None
    return Section(title, note, [Inlined.drawn(title, lambda path: draw(path, records))])


def _caption(name: str, paths: Sequence[Path]) -> str:
    last = name.rpartition("/")[2]
    words = next((text for pattern, text in PICTURES.items() if fnmatchcase(last, pattern)), "")
    step = f" Step {int(paths[-1].stem):,}." if paths[-1].stem.isdigit() else ""
    return f"{name}. {words}{step}"
