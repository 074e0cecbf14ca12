"""A training small enough for tests: a ViT of two blocks on synthetic images, a fraction of a second an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from algorithm.experiment import Experiment
from algorithm.recipes.checkpoint import newest
from algorithm.recipes.engine import Outcome, train
from algorithm.schema import parse

Tree = dict[str, Any]
PLAIN: Tree = {
    "model": {"name": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 8, "num_classes": 3,
              "extra": {"depth": 2, "embed_dim": 16, "num_heads": 2}},
    "data": {"name": "synthetic", "synthetic": {"classes": 3, "images": 8, "held_out": 5}},
    "recipe": {"batch": 4, "workers": 0, "threads": 1, "optim": {"opt": "sgd", "lr": 0.05},
               "schedule": {"sched": "cosine", "epochs": 2, "warmup_steps": 2}},
    "monitor": {"jsonl": False, **dict.fromkeys(("activations_every", "gram_every", "histograms_every", "vis_freq",
                                                 "analysis_freq", "classes_freq"))},
}
SLICED_ALL: Tree = {"plan": {"enable_backward_config": True, "n_bias_update": "all", "n_weight_update": "all",
                             "weight_update_ratio": 0.25}}
# everything that has a state or draws numbers, on a plan that trains slices
ALL: Tree = {
    **SLICED_ALL,
    "recipe": {"accum_steps": 2, "batch": 2, "drop_path": 0.3, "optim": {"opt": "adamw", "lr": 0.01, "weight_decay": 0.05,
                                                                         "clip_grad": 1.0},
               "augment": {"mixup": 0.8, "cutmix": 1.0, "smoothing": 0.1, "reprob": 0.5},
               "ema": {"enabled": True, "decay": 0.9, "warmup": True}},
}


def merged(*trees: Tree) -> Tree:
    out: Tree = {}
    for tree in trees:
        for key, value in tree.items():
            out[key] = merged(out.get(key, {}), value) if isinstance(value, dict) else value
    return out


def experiment(*trees: Tree) -> Experiment:
    return parse(Experiment, merged(PLAIN, *trees))


def run(folder: Path, *trees: Tree, **options: Any) -> Outcome:
    return train(experiment(*trees), folder, **options)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint."""
    path = newest(folder)
    assert path is not None
    return {name: t.clone() for name, t in load_file(path).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
