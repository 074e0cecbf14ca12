"""Image files of every kind: each pixel's value is known, or the file is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from algorithm.data import load_image
from algorithm.errors import DataError

RAMP = (np.arange(16 * 16, dtype=np.int64).reshape(16, 16) * 257)  # 0 .. 65535, v / 257 = 0 .. 255
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


def loaded(path: Path, image: Image.Image, **options: Any) -> np.ndarray:
    image.save(path, **options)
    return load_image(path, image.size[0])


@pytest.mark.parametrize(("dtype", "scale", "suffix"), [
    (np.uint16, 1, "png"), (np.uint16, 1, "tif"), (np.int32, 1, "tif"), (np.float32, 1 / 65535, "tif")])
def test_grey_of_more_than_8_bits_keeps_its_range(tmp_path: Path, dtype: type, scale: float, suffix: str) -> None:
    got = loaded(tmp_path / f"x.{suffix}", Image.fromarray((RAMP * scale).astype(dtype)))
    assert all(np.array_equal(got[..., c], GREY) for c in range(3))


def test_16_bit_values_between_are_rounded(tmp_path: Path) -> None:
    values = np.full((4, 4), 12_345, np.uint16)
    assert np.unique(loaded(tmp_path / "x.png", Image.fromarray(values))) == [round(12_345 / 257)]


@pytest.mark.parametrize(("array", "match"), [
    (np.full((4, 4), 70_000, np.int32), "within 0 and 65535"), (np.full((4, 4), -1, np.int32), "within 0 and 65535"),
    (np.full((4, 4), 200, np.int32), "8 or as 16 bits"), (np.full((4, 4), 3.0, np.float32), "within 0 and 1"),
    (np.full((4, 4), np.nan, np.float32), "NaN")])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, array: np.ndarray, match: str) -> None:
    Image.fromarray(array).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match=match):
        load_image(tmp_path / "x.tif", 4)


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 0], rgba[:2, :, 3], rgba[2, :, 3] = 200, 255, 128
    got = loaded(tmp_path / "rgba.png", Image.fromarray(rgba, "RGBA"))
    assert got[0, 0].tolist() == [200, 0, 0] and got[3, 0].tolist() == [255, 255, 255]
    assert np.abs(got[2, 0].astype(int) - [227, 127, 127]).max() <= 1
    grey = loaded(tmp_path / "la.png", Image.merge("LA", [Image.new("L", (4, 4), 100), Image.new("L", (4, 4), 0)]))
    assert np.unique(grey) == [255]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert loaded(tmp_path / "p.png", palette)[0, 0].tolist() == [40, 50, 60]
    assert loaded(tmp_path / "pt.png", palette, transparency=1)[0, 0].tolist() == [255, 255, 255]
    for mode, colour, clear in (("L", 7, 7), ("RGB", (7, 8, 9), (7, 8, 9)), ("1", 0, 0), ("I;16", 7, 7)):
        assert np.unique(loaded(tmp_path / "t.png", Image.new(mode, (4, 4), colour), transparency=clear)) == [255], mode


def test_cmyk_and_bilevel(tmp_path: Path) -> None:
    got = loaded(tmp_path / "cmyk.tif", Image.new("CMYK", (4, 4), (0, 255, 255, 0)))
    assert got[0, 0].tolist() == [255, 0, 0]
    assert np.unique(loaded(tmp_path / "one.png", Image.new("1", (4, 4), 1))) == [255]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    array = np.zeros((8, 8, 3), np.uint8)
    array[:4] = 255
    upright = loaded(tmp_path / "x.png", Image.fromarray(array), exif=exif)
    assert np.array_equal(upright, np.rot90(array, -1))
    for name in ("deep.png", "deep.tif"):
        deep = loaded(tmp_path / name, Image.fromarray(array[..., 0].astype(np.uint16) * 257), exif=exif)
        assert np.array_equal(deep, upright), name


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    assert loaded(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])[0, 0].tolist() == [255, 0, 0]


def test_files_that_are_no_image_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole)
    bodies = {"empty.png": b"", "text.jpg": b"hello\nworld", "truncated.jpg": whole.read_bytes()[:900]}
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name in (*bodies, "vanished.png", "whole.jpg"):  # the last: a decompression bomb now
        with pytest.raises(DataError, match=rf"{name} is corrupt or unreadable \(.+\): remove or replace") as caught:
            load_image(tmp_path / name, 8)
        assert "\n" not in str(caught.value)
