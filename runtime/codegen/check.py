"""Does a C folder belong to a Program, and are its weights whole? Asked before anything is built."""

from __future__ import annotations

import re
from pathlib import Path

from runtime.codegen.layout import Layout, digest
from runtime.errors import CodegenError

NEEDED = ("vit_train.h", "vit_train.c", "weights.S", "weights.bin")
FIGURE = re.compile(r"^#define (VT_\w+) (\d+)$", re.MULTILINE)
SHA256 = re.compile(r"\* sha256 ([0-9a-f]{64})")


def check_folder(folder: Path, layout: Layout, classes: int, image_bytes: int) -> None:
    """Raises CodegenError where the folder is not C code of a Program with this layout, or weights.bin is damaged."""
    if not folder.is_dir():
        raise CodegenError(f"{folder} is no folder of generated C code")
    for name in NEEDED:
        if not (folder / name).is_file():
            raise CodegenError(f"{folder} is no folder of generated C code: {name} is missing")
    try:
        header = (folder / "vit_train.h").read_text()
        stated = SHA256.search((folder / "weights.S").read_text())
        image = (folder / "weights.bin").read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise CodegenError(f"the C code in {folder} cannot be read: {error}") from None
    found = {name: int(value) for name, value in FIGURE.findall(header)}
    expected = {"VT_CLASSES": classes, "VT_IMAGE_BYTES": image_bytes,
                **{f"VT_{block.upper()}_BYTES": size for block, size in layout.sizes.items()}}
    for name, value in expected.items():
        if found.get(name) != value:
            raise CodegenError(f"the C code in {folder} was generated from another Program: {name} is "
                               f"{found.get(name, 'missing')}, the Program's {value}")
    size, sha = layout.sizes["weights"], digest(image)
    if len(image) != size:
        raise CodegenError(f"the C code's weights.bin is {'truncated' if len(image) < size else 'damaged'}: {len(image):,} "
                           f"bytes of {size:,}; generate the C code again")
    if stated is None or stated[1] != sha:
        raise CodegenError(f"the C code's weights.bin is damaged: its sha256 is {sha[:12]}..., weights.S says "
                           f"{stated[1][:12] + '...' if stated else 'nothing'}; generate the C code again")
