"""The deepest stack of a bare-metal build: the compiler's frame sizes along the longest chain of calls.

Frames come from the `.stack_sizes` sections (-fstack-size-section), calls from the relocations; both need
-ffunction-sections. Interrupt handlers of the firmware are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import ToolchainError
from runtime.toolchain.elf import Elf

CALLS = {10, 28, 29, 30}        # R_ARM_THM_CALL, R_ARM_CALL, R_ARM_JUMP24, R_ARM_THM_JUMP24
ADDRESSES = {2, 47, 48}         # R_ARM_ABS32, R_ARM_THM_MOVW_ABS_NC, R_ARM_THM_MOVT_ABS: a function pointer
TEXT = ".text."


@dataclass
class Frames:
    """Function -> bytes of its frame, and the functions it calls. Names of static functions carry their file."""

    size: dict[str, int] = field(default_factory=dict)
    calls: dict[str, set[str]] = field(default_factory=dict)


def read_frames(objects: list[Path]) -> Frames:
    """Reads every function of the object files. A function whose address is taken counts as called."""
    frames = Frames()
    elfs = [Elf(path) for path in objects]
    shared = {s.name for elf in elfs for s in elf.symbols if s.defined and not s.local}

    for path, elf in zip(objects, elfs, strict=True):
        def full(name: str, stem: str = path.stem) -> str:
            return name if name in shared else f"{stem}:{name}"

        functions = {i: s.name.removeprefix(TEXT) for i, s in enumerate(elf.sections) if s.name.startswith(TEXT)}
        for section in elf.sections:
            if section.name == ".stack_sizes" and section.link in functions:
                frames.size[full(functions[section.link])] = uleb(elf.data, section.offset + (8 if elf.wide else 4))
        for target, kind, symbol in elf.relocations():
            if target not in functions or kind not in CALLS | ADDRESSES:
                continue
            callee = symbol.removeprefix(TEXT)
            if kind in CALLS or callee in functions.values():
                frames.calls.setdefault(full(functions[target]), set()).add(full(callee))
    return frames


def uleb(data: bytes, at: int) -> int:
    """An unsigned LEB128 number."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value


def deepest(frames: Frames, roots: tuple[str, ...]) -> tuple[int, list[str]]:
    """Bytes and chain of the deepest call from any root. Raises ToolchainError for recursion."""
    known: dict[str, tuple[int, list[str]]] = {}
    active: set[str] = set()

    def visit(name: str) -> tuple[int, list[str]]:
        if name in active:
            raise ToolchainError(f"{name} calls itself: its stack has no bound")
        if name not in known:
            active.add(name)
            below = max((visit(c) for c in sorted(frames.calls.get(name, ()))), key=lambda d: d[0], default=(0, []))
            active.discard(name)
            known[name] = (frames.size.get(name, 0) + below[0], [name, *below[1]])
        return known[name]

    return max((visit(r) for r in roots if r in frames.size), key=lambda d: d[0], default=(0, []))
