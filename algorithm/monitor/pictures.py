"""Pictures of what the model looks at in fixed samples, and its high-norm tokens; drawn by `algorithm.analysis`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from algorithm.analysis import (
    Tokens,
    cls_to_patch,
    cls_to_patch_layers,
    last_layer_tokens,
    norm_statistics,
    position_similarity,
    rollout,
    token_norms,
)
from algorithm.analysis.attention import index_of
from algorithm.analysis.charts import norm_histogram
from algorithm.analysis.pictures import heat_grid, overlays, position_grid, saliency_rows, shown
from algorithm.analysis.positions import has_positions
from algorithm.analysis.saliency import METHODS, saliency
from algorithm.errors import AnalysisError, ConfigError
from algorithm.models.features import get_attention_maps
from algorithm.models.vit import normalisation
from algorithm.monitor.activations import OUTPUTS, block_outputs
from algorithm.monitor.config import MonitorConfig
from algorithm.monitor.observer import Observer, Scene, Values
from algorithm.monitor.values import Histogram, Picture


class _Samples(Observer):
    """An observer of the fixed samples, as in evaluation."""

    def __init__(self, scene: Scene, freq: int | None, count: int | None) -> None:
        self.scene, self.freq = scene, freq or 0
        if scene.samples is None:
            self.freq = 0
            return
        self.samples: Tensor = scene.samples[:count]
        self.captions = [scene.caption(i) for i in range(len(self.samples))]

    def draw(self, name: str, step: int, draw: Any, *what: Any, **options: Any) -> dict[str, Picture]:
        """{name: the picture} that `draw` (of algorithm.analysis) writes of `what`."""
        path: Path = self.scene.monitor.picture_path(name, step)
        draw(path, *what, **options)
        return {name: Picture(path)}


class Visuals(_Samples):
    """`Vis/...`: attention maps, attention of the class token by head, rollout, saliency, position embeddings."""

    def __init__(self, scene: Scene, config: MonitorConfig) -> None:
        super().__init__(scene, config.vis_freq, config.vis_images)
        self.layers, self.heads = config.vis_layers, config.vis_heads
        if self.freq:
            _check(scene.model, config)

    def evaluated(self, step: int) -> Values:
        model, samples = self.scene.model, self.samples
        maps = get_attention_maps(model, samples)
        tokens = Tokens.of(model, samples)
        images = shown(samples, *normalisation(model))
        layers = [f"layer {i}" for i in range(len(maps))]
        values: Values = dict(self.draw(
            "Vis/attention_map_samples", step, overlays, images, tokens.as_grid(cls_to_patch_layers(maps, tokens)),
            f"Attention of the class token, mean over heads, step {step}", self.captions, layers))
        for layer, head in _chosen(maps, self.layers, self.heads):
            values |= self.draw(
                f"Vis/attention_cls_to_patch_layer{layer}_head{head}", step, overlays, images,
                tokens.as_grid(cls_to_patch(maps, layer, head, tokens)), f"Layer {layer}, head {head}, step {step}",
                self.captions)
        values |= self.draw("Vis/attention_rollout_samples", step, overlays, images, tokens.as_grid(rollout(maps, tokens)),
                            f"Attention rollout, step {step}", self.captions)
        classes = None if self.scene.labels is None else self.scene.labels[:len(samples)]
        values |= self.draw("Vis/saliency_maps", step, saliency_rows, images,
                            {method: saliency(model, samples, classes, method) for method in METHODS},
                            f"Saliency of the {'predicted' if classes is None else 'true'} class, step {step}",
                            self.captions)
        if has_positions(model):
            values |= self.draw("Vis/pos_embedding_similarity", step, position_grid, position_similarity(model),
                                f"How alike the position embeddings are, step {step}")
        return values


class Artifacts(_Samples):
    """`l2_norm_mean`, `l2_norm_std`, `l2_outlier_ratio` of the last layer's patch tokens, their histogram with the limit,
    and the attention of the class token, images x layers, where such tokens show."""

    def __init__(self, scene: Scene, config: MonitorConfig) -> None:
        super().__init__(scene, config.analysis_freq, None)
        self.drawn = config.vis_images

    def evaluated(self, step: int) -> Values:
        model, few = self.scene.model, self.samples[:self.drawn]
        norms = token_norms(last_layer_tokens(model, self.samples))
        found = norm_statistics(norms)
        values: Values = {**found.metrics(), "l2_norms": Histogram.of(norms)}
        values |= self.draw("l2_norm_histogram", step, norm_histogram, found,
                            f"Norms of the last layer's patch tokens, step {step}")
        maps, tokens = get_attention_maps(model, few), Tokens.of(model, few)
        return values | self.draw(
            "cls_to_patch_grid", step, heat_grid, shown(few, *normalisation(model)),
            tokens.as_grid(cls_to_patch_layers(maps, tokens)), f"Attention of the class token by layer, step {step}",
            self.captions[:self.drawn], [f"layer {i}" for i in range(len(maps))])


def _chosen(maps: Sequence[Tensor], layers: Sequence[int], heads: Sequence[int] | None) -> list[tuple[int, int]]:
    """(layer, head) of what is drawn, counted from 0. Raises AnalysisError for one that the model does not have."""
    out = []
    for layer in dict.fromkeys(index_of("layer", i, len(maps)) for i in layers):
        count = maps[layer].shape[1]
        out += [(layer, head) for head in dict.fromkeys(
            index_of("head", i, count) for i in (range(count) if heads is None else heads))]
    return out


def _check(model: nn.Module, config: MonitorConfig) -> None:
    """Raise ConfigError for a layer or a head that the model does not have, as far as its blocks tell."""
    attentions: list[Any] = [m for n, m in block_outputs(model).items() if n.endswith(OUTPUTS["attn"])]
    heads = [int(m.num_heads) for m in attentions if hasattr(m, "num_heads")]
    for option, what, asked in (("vis_layers", "layer", config.vis_layers), ("vis_heads", "head", config.vis_heads or [])):
        for index in asked if heads else []:
            try:
                index_of(what, index, len(heads) if what == "layer" else min(heads))
            except AnalysisError as error:
                raise ConfigError(f"monitor.{option}: {error}") from None
