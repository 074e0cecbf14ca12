"""Puts a C folder in its place: written aside, then moved whole. What was not generated is never replaced."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from runtime.errors import CodegenError

MARK = "/* vit_train.h - one training step of "
LISTED = re.compile(r"^(?:SOURCES|HEADERS) := (.*)$", re.MULTILINE)     # in the generated Makefile
OTHERS = {"Makefile", "CMakeLists.txt", "weights.bin", "libvit_train.a"}


def require_ours(folder: Path) -> None:
    """Raises CodegenError unless the path is free, an empty folder, or holds only generated files and what `make` made."""
    try:
        reason = foreign(folder)
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
    if reason:
        raise CodegenError(f"{folder} {reason}: it is not replaced; move that away or choose another folder for the C code")


def foreign(folder: Path) -> str:
    """Why a path may not be replaced by generated code; empty when it may."""
    if not folder.exists() and not folder.is_symlink():
        return ""
    if not folder.is_dir():
        return "is a file"
    names = sorted(p.name for p in folder.iterdir())
    if not names:
        return ""
    if not (folder / "vit_train.h").is_file() or not (folder / "vit_train.h").read_text(errors="replace").startswith(MARK):
        return f"holds {names[0]} and no generated C code"
    makefile = folder / "Makefile"
    listed = set(" ".join(LISTED.findall(makefile.read_text(errors="replace")) if makefile.is_file() else []).split())
    ours = listed | OTHERS | {str(Path(name).with_suffix(".o")) for name in listed}
    others = [name for name in names if name not in ours or not (folder / name).is_file()]
    return f"holds {others[0]}, which was not generated" if others else ""


def put(folder: Path, write: Callable[[Path], None]) -> None:
    """Calls `write` with an empty folder beside `folder` and moves it there. Raises CodegenError; leaves nothing aside.

    An older generated folder is replaced only when the new one is whole.
    """
    folder = folder.resolve()
    fresh, old = (folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.{kind}") for kind in ("new", "old"))
    try:
        require_ours(folder)
        fresh.mkdir(parents=True)
        write(fresh)
        try:
            if folder.exists():
                folder.rename(old)
            fresh.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
    except OSError as error:
        raise CodegenError(f"the C code cannot be written to {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
