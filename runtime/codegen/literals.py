"""Values and names as C spells them."""

from __future__ import annotations

from typing import Any

from runtime.errors import CodegenError


def c_float(value: float) -> str:
    """A float literal that reads back to the same float32."""
    text = f"{value:.9g}"
    return text + ("f" if any(c in text for c in ".en") else ".0f")


def c_string(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'


def attribute(name: str, kind: type, value: Any) -> str:
    """An operation's attribute as the field of its struct."""
    if value is None:
        raise CodegenError(f"attribute {name} is not set and has no default")
    return c_float(float(value)) if kind is float else str(int(value))


def gradient_slot(slot: str) -> str:
    return slot if slot.startswith("d_") else f"d_{slot}"
