"""One image of any kind -> 8-bit RGB, by stated rules; what has no rule is refused, never guessed.

- The EXIF orientation is applied. Of an animation the first frame counts.
- 16-bit grey is divided by 257, so that 65,535 becomes 255. 32-bit integers are read as 16-bit values in a wider
  container, floats as 0 to 1; values outside that range are refused.
- Transparency (an alpha channel, a transparent colour) is laid over WHITE.
- CMYK, YCbCr, HSV and palettes are converted as Pillow does.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

WHITE = (255, 255, 255)
_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def to_rgb(image: Image.Image) -> Image.Image:
    """A Pillow image -> mode RGB. Raises ValueError where a pixel's meaning is not known."""
    is_png = image.format == "PNG"
    image = ImageOps.exif_transpose(image)
    if image.mode in _WIDE:
        image = _wide_grey(image, is_png)
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image).convert("RGB")
    return image.convert("RGB")


def _wide_grey(image: Image.Image, is_png: bool) -> Image.Image:
    """Grey of more than 8 bits -> L, or LA where one of its values is transparent. A PNG has 16 bits at most."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it holds NaN or infinite pixels")
    if image.mode == "F":
        if low < 0 or high > 1:
            raise ValueError(f"float pixels must be within 0 and 1, found {low:g} to {high:g}: save it with 8 or 16 bits")
        grey = np.round(values.astype(np.float64) * 255)
    else:
        if low < 0 or high > 65_535:
            raise ValueError(f"integer pixels must be within 0 and 65535, found {low:g} to {high:g}: save it with 8 or "
                             "16 bits")
        if image.mode == "I" and not is_png and 0 < high <= 255:
            raise ValueError(f"32-bit pixels of 0 to {high:g} may be meant as 8 or as 16 bits: save it with 8 or 16 bits")
        grey = np.round(values / 257)
    out = Image.fromarray(grey.astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        out.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return out
