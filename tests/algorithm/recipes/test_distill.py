"""Distillation from a teacher of timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from algorithm.errors import WeightsError
from algorithm.models import build_model
from algorithm.recipes.config import DistillConfig
from algorithm.recipes.distill import Teacher
from tests.algorithm.recipes.forks import differing, experiment, trained, weights


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The configuration of a small teacher of another size, with weights of its own."""
    torch.manual_seed(5)
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_file(timm.create_model("test_vit", num_classes=4, img_size=32).state_dict(), file)
    return {"teacher": "test_vit", "weights": str(file), "img_size": 32}


def test_the_teacher_sees_the_images_as_it_was_trained_to(teacher: dict[str, Any]) -> None:
    student = build_model(experiment().model)
    net = timm.create_model("test_vit", num_classes=4, img_size=16).eval()
    mean, std = (torch.tensor(net.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    own, dev = (torch.tensor(student.pretrained_cfg[k]).view(1, 3, 1, 1) for k in ("mean", "std"))  # type: ignore[index]
    asked = Teacher(DistillConfig(**{**teacher, "img_size": 32}), student, 4, 32, torch.device("cpu"))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    reference = timm.create_model("test_vit", num_classes=4, img_size=32).eval()
    from safetensors.torch import load_file
    reference.load_state_dict(load_file(teacher["weights"]))
    with torch.no_grad():
        assert torch.allclose(asked((pixels - own) / dev), reference((pixels - mean) / std), atol=1e-5)


def test_a_training_learns_from_it(teacher: dict[str, Any], tmp_path: Path) -> None:
    runs: dict[str, dict[str, Any]] = {"none": {}, "off": {"distill": {**teacher, "alpha": 0.0}},
                                       "soft": {"distill": {**teacher, "tau": 2.0}},
                                       "hard": {"distill": {**teacher, "kind": "hard"}}}
    for name, recipe in runs.items():
        trained(tmp_path / name, {"recipe": recipe})
    ends = {name: weights(tmp_path / name) for name in runs}
    assert differing(ends["none"], ends["off"]) == []       # a teacher of weight 0 is none, bit for bit
    assert all(len(differing(ends[a], ends[b])) > 10 for a, b in (("none", "soft"), ("none", "hard"), ("soft", "hard")))


def test_a_checkpoint_of_ours_can_teach_the_same_model(tmp_path: Path) -> None:
    """Its moving average and optimiser, which stand beside the weights, are left out."""
    wide = {"model": {"name": "test_vit", "patch_size": None, "img_size": 32,
                      "extra": {"embed_dim": 64, "depth": 6}}}
    ema = {"recipe": {"ema": {"enabled": True}, "schedule": {"total_steps": 3, "warmup_steps": 0}}}
    first = trained(tmp_path / "teacher", wide, ema)
    distill = {"recipe": {"distill": {"teacher": "test_vit", "weights": str(first.checkpoint)}}}
    assert trained(tmp_path / "student", wide, ema, distill).updates == 3
    assert len(differing(weights(tmp_path / "student"), weights(tmp_path / "teacher"))) > 10


def test_a_teacher_of_other_classes_is_refused(teacher: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'head.weight' of .* is \(4, 64\), the teacher of 5 classes needs \(5, 64\)"):
        trained(tmp_path, {"model": {"num_classes": 5}, "recipe": {"distill": teacher}})
