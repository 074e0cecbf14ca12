"""What `python -m algorithm analyze` does: measure, show as a table, save as JSON and arrays, draw."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from algorithm.analysis.artifacts import NormStatistics, last_layer_tokens, norm_statistics, token_norms
from algorithm.analysis.attention import cls_to_patch_layers
from algorithm.analysis.charts import norm_histogram
from algorithm.analysis.config import ArtifactsConfig, SpectrumConfig
from algorithm.analysis.files import write_whole
from algorithm.analysis.matrices import kind_of, weight_matrices
from algorithm.analysis.pictures import heat_grid
from algorithm.analysis.spectrum import Spectrum, measure
from algorithm.analysis.spectrum_charts import spectra, spectrum_by_layer
from algorithm.analysis.tables import Table, figure, share
from algorithm.analysis.tokens import Tokens
from algorithm.errors import AnalysisError
from algorithm.models.features import get_attention_maps

FIGURES = ("sigma_max", "stable_rank", "effective_rank", "rank", "condition")
ARRAYS = (".npz", ".pt")


@dataclass(frozen=True)
class SpectrumResult:
    """The spectra of a model's matrices, in the model's order, and what was asked for."""

    config: SpectrumConfig
    found: Sequence[Spectrum]

    def by_type(self) -> dict[str, dict[str, dict[str, float]]]:
        """Type -> figure -> {"median", "min", "max"} over its matrices."""
        groups: dict[str, list[Spectrum]] = defaultdict(list)
        for spectrum in self.found:
            groups[kind_of(spectrum.name)].append(spectrum)
        return {kind: {key: {"median": float(np.median(values)), "min": min(values), "max": max(values)}
                       for key in FIGURES for values in [[s.summary()[key] for s in group]]}
                for kind, group in groups.items()}

    def table(self) -> Table:
        """A row a matrix."""
        return Table("Spectra by layer", ["matrix", "shape", *(f.replace("_", " ") for f in FIGURES)],
                     [[s.name, " x ".join(map(str, s.shape)), *(figure(s.summary()[f]) for f in FIGURES)]
                      for s in self.found])

    def type_table(self) -> Table:
        """A row a type: the median over its matrices, and the range where there are several."""
        kinds = [kind_of(s.name) for s in self.found]
        return Table("Spectra by type (median, and the range over the layers)",
                     ["type", "matrices", *(f.replace("_", " ") for f in FIGURES)],
                     [[kind, str(kinds.count(kind)), *(_with_range(of[f]) for f in FIGURES)]
                      for kind, of in self.by_type().items()])

    def as_json(self) -> dict[str, Any]:
        """Plain data; what is infinite or undefined is null."""
        return _plain({"options": self.config.model_dump(mode="json"), "by_type": self.by_type(), "matrices": {
            s.name: {"type": kind_of(s.name), "shape": list(s.shape), **s.summary(), **_listed(s, self.config.full)}
            for s in self.found}})

    def save(self, json_path: str | Path, arrays: str | Path | None = None) -> None:
        """as_json to `json_path`; to `arrays` (.npz, or .pt for `torch.load(weights_only=True)`) of each matrix m
        "m/values" (all of them, float64), and with vectors "m/index" (F,), "m/u" (rows, F), "m/v" (columns, F).

        Raises AnalysisError for another ending, or where a file cannot be written.
        """
        text = json.dumps(self.as_json(), indent=1) + "\n"
        if arrays is not None and Path(arrays).suffix not in ARRAYS:
            raise AnalysisError(f"cannot save vectors as {arrays}: expected a name that ends in {' or '.join(ARRAYS)}")
        write_whole(json_path, lambda file: file.write_text(text))
        if arrays is None:
            return
        data: dict[str, np.ndarray] = {}
        for s in self.found:
            data[f"{s.name}/values"] = s.values
            if s.u is not None and s.v is not None:
                data |= {f"{s.name}/index": np.array([*s.first, *s.last]), f"{s.name}/u": s.u, f"{s.name}/v": s.v}
        if Path(arrays).suffix == ".npz":
            write_whole(arrays, lambda file: np.savez_compressed(file, allow_pickle=False, **data))
        else:
            write_whole(arrays, lambda file: torch.save({k: torch.from_numpy(v) for k, v in data.items()}, file))

    def draw(self, folder: str | Path) -> list[Path]:
        """spectrum.png, and spectrum_by_layer.png where a type has several layers."""
        folder = Path(folder)
        paths = [folder / "spectrum.png"]
        spectra(paths[0], self.found)
        if any(sum(kind_of(s.name) == kind for s in self.found) > 1 for kind in self.by_type()):
            paths.append(folder / "spectrum_by_layer.png")
            spectrum_by_layer(paths[1], self.found)
        return paths


def analyze_spectrum(model: nn.Module, config: SpectrumConfig | None = None) -> SpectrumResult:
    """The spectra of the matrices that `config.targets` names. Raises AnalysisError."""
    config = config or SpectrumConfig()
    dtype = torch.float64 if config.dtype == "float64" else torch.float32
    matrices = weight_matrices(model, config.targets, config.split_qkv)
    if config.split_qkv and not any(n.rpartition(".")[0].endswith("qkv") for n in matrices):
        raise AnalysisError("split_qkv has no effect: no fused qkv is among the matrices; leave it out, or name attn.qkv in "
                            "targets")
    topk = None if config.full else config.topk
    return SpectrumResult(config, [measure(name, matrix, topk, config.interval, config.vectors, dtype, config.svd_on_cpu)
                                   for name, matrix in matrices.items()])


@dataclass(frozen=True)
class ArtifactsResult:
    """statistics of all images; attention (B', L, rows, columns): CLS to patches of the first B' images, mean over heads."""

    statistics: NormStatistics
    attention: np.ndarray
    class_token: bool

    def table(self) -> Table:
        s = self.statistics
        return Table("High-norm tokens of the last layer", ["", "value"], [
            ["images", str(len(s.norms))], ["patch tokens", str(s.norms.size)], ["mean norm", figure(s.mean)],
            ["standard deviation", figure(s.std)], ["limit", figure(s.limit)],
            ["largest norm", figure(float(s.norms.max()))], ["outliers", share(s.outlier_ratio)]])

    def as_json(self) -> dict[str, Any]:
        s = self.statistics
        return {**s.metrics(), "limit": s.limit, "largest": float(s.norms.max()), "images": len(s.norms),
                "tokens": int(s.norms.size), "outliers_by_image": (s.norms > s.limit).sum(axis=1).tolist()}

    def save(self, json_path: str | Path, arrays: str | Path | None = None) -> None:
        """as_json; to `arrays` (.npz) "norms" (images, patches) and "cls_attention". Raises AnalysisError."""
        if arrays is not None and Path(arrays).suffix != ".npz":
            raise AnalysisError(f"cannot save norms as {arrays}: expected a name that ends in .npz")
        text = json.dumps(self.as_json(), indent=1) + "\n"
        write_whole(json_path, lambda file: file.write_text(text))
        if arrays is not None:
            write_whole(arrays, lambda file: np.savez_compressed(file, norms=self.statistics.norms,
                                                                 cls_attention=self.attention))

    def draw(self, folder: str | Path, images: np.ndarray, captions: Sequence[str] = ()) -> list[Path]:
        """norm_histogram.png and cls_attention_by_layer.png. images (B, H, W, 3) in [0, 1], those that were analysed."""
        paths = [Path(folder) / "norm_histogram.png", Path(folder) / "cls_attention_by_layer.png"]
        norm_histogram(paths[0], self.statistics)
        count, layers = self.attention.shape[:2]
        who = "the class token" if self.class_token else "all tokens (mean)"
        heat_grid(paths[1], images[:count], self.attention, f"Attention of {who} to the patches, by layer", captions[:count],
                  [f"layer {i}" for i in range(layers)])
        return paths


def analyze_artifacts(model: nn.Module, images: Tensor, config: ArtifactsConfig | None = None) -> ArtifactsResult:
    """images (B, 3, H, W), normalised, on the model's device. Raises AnalysisError, ModelError."""
    config = config or ArtifactsConfig()
    if not len(images):
        raise AnalysisError("no image to analyse")
    norms = torch.cat([token_norms(last_layer_tokens(model, part)) for part in images.split(config.batch)])
    tokens = Tokens.of(model, images)
    maps = torch.cat([cls_to_patch_layers(get_attention_maps(model, part), tokens)
                      for part in images[:config.grid_images].split(config.batch)])
    return ArtifactsResult(norm_statistics(norms, config.sigmas), tokens.as_grid(maps).float().cpu().numpy(),
                           tokens.class_token)


def _listed(s: Spectrum, full: bool) -> dict[str, Any]:
    if full:
        return {"values": s.values.tolist()}
    return {"first": {"index": list(s.first), "values": s.values[list(s.first)].tolist()},
            "last": {"index": list(s.last), "values": s.values[list(s.last)].tolist()}}


def _with_range(of: dict[str, float]) -> str:
    if of["min"] == of["max"]:
        return figure(of["median"])
    return f"{figure(of['median'])} ({figure(of['min'], 3)} to {figure(of['max'], 3)})"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value
