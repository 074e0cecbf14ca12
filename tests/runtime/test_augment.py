"""The firmware's shifts and flips against the training's."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from algorithm.training import TrainConfig
from algorithm.training.augment import transform_of, transformed
from runtime.codegen.generate import AUGMENT
from runtime.toolchain import Build
from runtime.toolchain.build import build_shared


def test_the_device_does_the_same_to_the_bit(toy_folder: Path, tmp_path: Path) -> None:
    """From the emitted folder, as a firmware has it."""
    source = tmp_path / "augment.c"
    source.write_text(f'#include "{AUGMENT}"\nvoid augment(uint8_t *i, int32_t h, int32_t w, int32_t c, '
                      "int32_t p, int32_t f, uint32_t s, uint32_t v, uint32_t n) "
                      "{ vt_augment(i, h, w, c, p, f, s, v, n); }\n")
    c = ctypes.CDLL(str(build_shared(toy_folder, tmp_path / "a.so", Build(optimise="-O1"), [source])))
    rng = np.random.default_rng(0)
    moved = 0
    for augment, side, channels in (("both", 12, 3), ("shift", 9, 1), ("flip", 7, 3)):
        options: dict[str, Any] = {"augment": augment, "seed": 9, **({} if augment == "flip" else {"shift": 0.5})}
        config = TrainConfig(**options)
        for variant in range(4):
            for i in range(25):
                image = rng.integers(0, 256, (side, side, channels), np.uint8)
                expected = transformed(image, transform_of(config, side, i, variant))
                own = image.copy()
                c.augment(own.ctypes.data_as(ctypes.c_void_p), side, side, channels,
                          0 if augment == "flip" else round(0.5 * side), int(augment != "shift"), config.seed, variant, i)
                assert np.array_equal(own, expected), (augment, variant, i)
                moved += not np.array_equal(own, image)
    assert moved > 150
