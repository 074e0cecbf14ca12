"""timm, with an `import torchvision` that works beside any build of torch; no effect where the builds match.

    from algorithm.models.torchvision_shim import timm

With a CPU build of torch and a CUDA build of torchvision, torchvision's import fails because two operators have
no schema. Nothing here uses those operators, so declaring their schemas is enough.
"""

from __future__ import annotations

import importlib
import sys

import torch

_NMS = "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[torch.library.Library] = []  # a Library's definitions die with it


def _forget_torchvision() -> None:
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]


def ensure_torchvision() -> None:
    """Import torchvision; where its compiled part is missing, declare the two schemas it asks for and try again."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        _forget_torchvision()
        library = torch.library.Library("torchvision", "FRAGMENT")
        _kept.append(library)
        for schema in (_NMS, _NMS.replace("nms", "qnms", 1)):
            name = schema.split("(", 1)[0]
            if not hasattr(torch.ops.torchvision, name):
                library.define(schema)
        importlib.import_module("torchvision")


ensure_torchvision()
import timm  # noqa: E402, F401

for _part in ("data", "loss", "optim", "scheduler", "utils"):   # reached through timm's name
    importlib.import_module(f"timm.{_part}")
