"""What a folder of a run may be called."""

from __future__ import annotations

from pathlib import Path

LONGEST_NAME = 200                          # bytes; file systems allow 255, and we add to it


def wrong_name(name: str) -> str:
    """Why a name cannot be one plain, visible file name ("the name 'a/b' is a path"); empty where it can."""
    size = len(name.encode(errors="surrogatepass"))
    wrong = ("is empty" if not name.strip() else
             "begins with a dot" if name.startswith(".") else
             "is a path" if "/" in name or "\\" in name or Path(name).name != name else
             "begins or ends with a space" if name != name.strip() else
             "has characters that cannot be printed" if not name.isprintable() else
             "is what the link to the last run is called" if name.casefold() == "latest" else
             f"has {size} bytes, {LONGEST_NAME} at most" if size > LONGEST_NAME else "")
    shown = name if len(name) <= 60 else name[:57] + "..."
    return f"the name {shown!r} {wrong}" if wrong else ""
