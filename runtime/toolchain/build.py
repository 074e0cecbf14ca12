"""Builds a generated C folder: shared libraries for the host, objects for a bare Cortex-M core.

Everything is made in a temporary folder; only what was asked for leaves it, whole.
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ToolchainError
from runtime.toolchain.cache import fetch, object_key, store
from runtime.toolchain.compiler import (
    EXACT,
    LINK,
    WARNINGS,
    ZIG_ONLY,
    Build,
    compiler_command,
    compiler_version,
    run,
    temporary_folder,
)
from runtime.toolchain.elf import Elf, undefined_symbols
from runtime.toolchain.stack import deepest, read_frames

CORTEX_M7 = ("-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m7+fp_armv8d16", "-O3", "-Xclang", "-O3",
             "-fomit-frame-pointer", "-ffreestanding", "-fno-unwind-tables", "-ffunction-sections", "-fdata-sections",
             "-fstack-size-section")
FLASH_STANDIN = 0x90000000   # where the constants would be, when only the code is built
ENTRY_POINTS = ("vt_init", "vt_input", "vt_train_step", "vt_predict", "vt_logits", "vt_trained", "vt_trained_table")


def compile_objects(sources: list[Path], flags: tuple[str, ...], compiler: str, build_folder: Path) -> list[Path]:
    """One object a source, in the order given; at most one compiler a core at a time. Raises ToolchainError."""
    command, version = compiler_command(compiler), compiler_version(compiler)
    build_folder = build_folder.absolute()
    build_folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> Path:
        out = build_folder / (source.stem + ".o")
        flags_here = flags if source.suffix == ".c" else tuple(f for f in flags if not f.startswith("-std="))
        key = None
        if source.suffix == ".c" and not source.name.startswith("vit_"):        # a kernel
            key = object_key(source, flags_here, version)
            if fetch(key, out):
                return out
        run([*command, *flags_here, "-c", source.name, "-o", str(out)], source.parent, build_folder)
        if key is not None:
            store(key, out)
        return out

    pool = ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1))
    try:
        return list(pool.map(compile_one, sources))
    except OSError as error:
        raise ToolchainError(f"cannot build in {build_folder}: {error}") from None
    finally:
        pool.shutdown(cancel_futures=True)      # after an error or Ctrl-C nothing new is begun


def sources_in(folder: Path, weights: bool = True) -> list[Path]:
    """The C files of a generated folder (and weights.S). Raises ToolchainError where there are none."""
    found = sorted(folder.glob("*.c"))
    if not (folder / "vit_train.c").is_file():
        raise ToolchainError(f"{folder} holds no generated C code (vit_train.c is missing)")
    return [*found, folder / "weights.S"] if weights else found


def build_shared(folder: Path, out: Path, build: Build, extra: list[Path] | None = None) -> Path:
    """A shared library for this machine from a generated C folder and extra C files. Returns `out`.

    Raises ToolchainError; nothing is left behind then.
    """
    flags = (*build.flags, "-fPIC")
    folder, out = folder.absolute(), out.absolute()
    with temporary_folder("vit-build-") as name:
        room = Path(name)
        objects = compile_objects(sources_in(folder), flags, build.compiler, room)
        for source in extra or []:
            objects += compile_objects([source.absolute()], (*flags, f"-I{folder}"), build.compiler, room)
        run([*compiler_command(build.compiler), *LINK, *build.cpu_flags, "-o", "library.so", *(o.name for o in objects),
             "-lm", "-lpthread"], room, room)
        move(room / "library.so", out)
    return out


def move(made: Path, out: Path) -> None:
    """Puts a file in its place, whole or not at all. Raises ToolchainError."""
    fresh = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False) as file:
            fresh = Path(file.name)
            file.write(made.read_bytes())
        fresh.replace(out)
    except OSError as error:
        if fresh is not None:
            fresh.unlink(missing_ok=True)
        raise ToolchainError(f"{out} cannot be written: {error.strerror or error}") from None


@dataclass(frozen=True)
class Firmware:
    """A bare-metal build, linked without a start-up file: what the device would hold.

    undefined: symbols nothing defines (must be empty); code_bytes: code and read-only data without weights.bin;
    weights_bytes: weights.bin; ram: writable bytes by section; stack_bytes: the deepest chain of calls, stack_chain.
    """

    undefined: frozenset[str]
    code_bytes: int
    weights_bytes: int
    ram: dict[str, int]
    stack_bytes: int
    stack_chain: tuple[str, ...]

    @property
    def flash_bytes(self) -> int:
        return self.code_bytes + self.weights_bytes


def build_firmware(folder: Path, flags: tuple[str, ...] = CORTEX_M7) -> Firmware:
    """Builds the folder for a freestanding Cortex-M7 with FPU and reads the sizes from the linked ELF file.

    Raises ToolchainError.
    """
    folder = folder.absolute()
    with temporary_folder("vit-firmware-") as name:
        build_folder = Path(name)
        all_flags = (*flags, *WARNINGS, *EXACT, *ZIG_ONLY, f"-DVT_WEIGHTS_ADDRESS={FLASH_STANDIN:#x}u")
        objects = compile_objects(sources_in(folder, weights=False), all_flags, "zig", build_folder)
        undefined = undefined_symbols(objects)
        weights_bytes = (folder / "weights.bin").stat().st_size
        stack, names = deepest(read_frames(objects), ENTRY_POINTS)
        chain = tuple(names)
        if undefined:
            elfs = [Elf(o) for o in objects]
            ram: dict[str, int] = {}
            for elf in elfs:
                for section, size in elf.ram.items():
                    ram[section] = ram.get(section, 0) + size
            return Firmware(frozenset(undefined), sum(e.flash_bytes for e in elfs), weights_bytes, ram, stack, chain)
        defined = {s.name for o in objects for s in Elf(o).symbols if s.defined}
        roots = [f"-Wl,-u,{entry}" for entry in ENTRY_POINTS if entry in defined]
        script = build_folder / "sections.ld"       # keeps the input sections' names, so that sizes can be told apart
        blocks = "".join(f"  .vt_{b} : {{ *(.bss.vt_{b}*) }}\n" for b in ("arena", "trained", "state", "output"))
        script.write_text("SECTIONS { . = 0x08000000; .text : { *(.text*) } .rodata : { *(.rodata*) }\n"
                          "  .ARM.exidx : { *(.ARM.exidx*) } . = 0x20000000; .data : { *(.data*) }\n"
                          f"{blocks}  .bss : {{ *(.bss*) *(COMMON) }} }}\n")
        run([*compiler_command("zig"), *flags[:3], "-nostdlib", "-Wl,--gc-sections", "-Wl,-e,vt_predict", *roots,
             f"-Wl,-T,{script.name}", "-o", "firmware.elf", *(o.name for o in objects)], build_folder, build_folder)
        elf = Elf(build_folder / "firmware.elf")
        return Firmware(frozenset(), elf.flash_bytes, weights_bytes, elf.ram, stack, chain)
