"""Builds a generated C folder: shared libraries for the host, objects for a bare Cortex-M core.

The compiler is zig's clang from the `ziglang` package unless a system gcc or clang is asked for. Objects of the
kernels, which do not depend on the model, are cached by content.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ToolchainError
from runtime.toolchain.elf import Elf, undefined_symbols
from runtime.toolchain.stack import deepest, read_frames

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
EXACT = ("-ffp-contract=off", "-fno-math-errno")        # the same bits everywhere; sqrtf and fmaf as instructions
ZIG_ONLY = ("-fno-sanitize=undefined",)
CORTEX_M7 = ("-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m7+fp_armv8d16", "-O3", "-Xclang", "-O3",
             "-fomit-frame-pointer", "-ffreestanding", "-fno-unwind-tables", "-fno-stack-protector",
             "-ffunction-sections", "-fdata-sections", "-fstack-size-section")
FLASH_STANDIN = 0x90000000   # where the constants would be, when only the code is built
ENTRY_POINTS = ("vt_init", "vt_input", "vt_train_step", "vt_predict", "vt_logits", "vt_trained", "vt_trained_table")


@dataclass(frozen=True)
class Build:
    """How to build for this machine. compiler: "zig", "gcc", "clang" or a path; cpu: "native" or "baseline"."""

    compiler: str = "zig"
    optimise: str = "-O3"
    cpu: str = "native"
    defines: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        cpu: tuple[str, ...] = ()
        if self.compiler == "zig":      # zig's default is the native CPU
            cpu = ("-mcpu=baseline",) if self.cpu == "baseline" else ()
        elif self.cpu == "native":
            cpu = ("-mcpu=native",) if platform.machine() in ("aarch64", "arm64") else ("-march=native",)
        extra = ZIG_ONLY if self.compiler == "zig" else ()
        return (self.optimise, *cpu, *WARNINGS, *EXACT, *extra, *(f"-D{d}" for d in self.defines))


LAW4_BUILDS = {
    "zig -O0": Build(optimise="-O0", cpu="baseline"),
    "zig -O3 baseline": Build(cpu="baseline"),
    "zig -O3 native": Build(),
    "gcc -O0": Build("gcc", "-O0", "baseline"),
    "gcc -O3 native": Build("gcc"),
    "clang -O3 native": Build("clang"),
}


def available_builds() -> dict[str, Build]:
    """The builds of law 4 whose compiler is on this machine."""
    return {name: b for name, b in LAW4_BUILDS.items() if b.compiler == "zig" or shutil.which(b.compiler)}


def compiler_command(compiler: str) -> list[str]:
    """The command line's beginning. Raises ToolchainError where the compiler is missing."""
    if compiler == "zig":
        try:
            import ziglang  # noqa: F401
        except ImportError:
            raise ToolchainError("the ziglang package is not installed: pip install ziglang, or ask for a system "
                                 "compiler (gcc, clang)") from None
        return [sys.executable, "-m", "ziglang", "cc"]
    path = shutil.which(compiler)
    if path is None:
        raise ToolchainError(f"compiler {compiler} is not on the PATH: install it or use the default, zig")
    return [path]


@functools.cache
def cache_folder() -> Path:
    """A writable folder for kernel objects: the user's cache, else a private temporary one."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "vit-train-objects"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
        return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="vit-train-objects-"))


def environment(build_folder: Path) -> dict[str, str]:
    """zig keeps what it builds once (its C runtime) in the user's cache, and ours in the build folder."""
    env = dict(os.environ, ZIG_LOCAL_CACHE_DIR=str(build_folder / "zig-cache"))
    if "ZIG_GLOBAL_CACHE_DIR" not in env:
        env["ZIG_GLOBAL_CACHE_DIR"] = str(cache_folder() / "zig")
    return env


def run(command: list[str], cwd: Path, build_folder: Path) -> None:
    """Runs a compiler. Raises ToolchainError with its first errors."""
    done = subprocess.run(command, cwd=cwd, env=environment(build_folder), capture_output=True, text=True)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line] or \
            done.stderr.splitlines()
        raise ToolchainError(f"{Path(command[0]).name} failed in {cwd.name}/ ({' '.join(command[-4:])}):\n  "
                             + "\n  ".join(lines[:8]))


@functools.cache
def compiler_version(compiler: str) -> str:
    try:
        done = subprocess.run([*compiler_command(compiler), "--version"], capture_output=True, text=True, timeout=120)
    except OSError as error:
        raise ToolchainError(f"compiler {compiler} cannot be run: {error}") from None
    return done.stdout + platform.node() + platform.machine()


def compile_objects(sources: list[Path], flags: tuple[str, ...], compiler: str, build_folder: Path) -> list[Path]:
    """One object a source, in the order given; at most one compiler a core at a time."""
    command = compiler_command(compiler)
    build_folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> Path:
        out = build_folder / (source.stem + ".o")
        flags_here = flags if source.suffix == ".c" else tuple(f for f in flags if not f.startswith("-std="))
        cached = None
        if source.suffix == ".c" and not source.name.startswith("vit_"):
            cached = cache_folder() / f"{object_key(source, flags_here, compiler)}.o"
            if cached.is_file():
                shutil.copyfile(cached, out)
                return out
        run([*command, *flags_here, "-c", source.name, "-o", str(out)], source.parent, build_folder)
        if cached is not None:
            fresh = cached.with_suffix(f".{os.getpid()}")
            shutil.copyfile(out, fresh)
            fresh.replace(cached)
        return out

    with ThreadPoolExecutor(max_workers=max(1, os.cpu_count() or 1)) as pool:
        return list(pool.map(compile_one, sources))


def object_key(source: Path, flags: tuple[str, ...], compiler: str) -> str:
    """Names an object by everything that it is made of."""
    state = hashlib.sha256(repr((compiler_version(compiler), flags, source.name)).encode())
    for path in [source, *sorted(p for p in source.parent.glob("*.h") if p.name != "vit_train.h")]:
        state.update(path.read_bytes())
    return state.hexdigest()


def sources_in(folder: Path, weights: bool = True) -> list[Path]:
    """The C files of a generated folder (and weights.S). Raises ToolchainError where there are none."""
    found = sorted(folder.glob("*.c"))
    if not (folder / "vit_train.c").is_file():
        raise ToolchainError(f"{folder} holds no generated C code (vit_train.c is missing)")
    return [*found, folder / "weights.S"] if weights else found


def build_shared(folder: Path, out: Path, build: Build, extra: list[Path] | None = None) -> Path:
    """A shared library for this machine from a generated C folder and extra C files. Returns `out`."""
    flags = (*build.flags, "-fPIC")
    build_folder = out.parent
    objects = compile_objects(sources_in(folder), flags, build.compiler, build_folder)
    for source in extra or []:
        objects += compile_objects([source], (*flags, f"-I{folder.resolve()}"), build.compiler, build_folder)
    cpu = [f for f in build.flags if f.startswith(("-mcpu", "-march"))]
    files = [str(o.resolve()) for o in objects]
    run([*compiler_command(build.compiler), "-O3", *cpu, "-shared", "-o", str(out.resolve()), *files, "-lm",
         "-lpthread"], folder, build_folder)
    for path in objects:
        path.unlink()
    return out


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
    """Builds the folder for a freestanding Cortex-M7 with FPU and reads the sizes from the linked ELF file."""
    with tempfile.TemporaryDirectory(prefix="vit-firmware-") as name:
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
        image = build_folder / "firmware.elf"
        defined = {s.name for o in objects for s in Elf(o).symbols if s.defined}
        roots = [f"-Wl,-u,{entry}" for entry in ENTRY_POINTS if entry in defined]
        script = build_folder / "sections.ld"       # keeps the input sections' names, so that sizes can be told apart
        blocks = "".join(f"  .vt_{b} : {{ *(.bss.vt_{b}*) }}\n" for b in ("arena", "trained", "state", "output"))
        script.write_text("SECTIONS { . = 0x08000000; .text : { *(.text*) } .rodata : { *(.rodata*) }\n"
                          "  .ARM.exidx : { *(.ARM.exidx*) } . = 0x20000000; .data : { *(.data*) }\n"
                          f"{blocks}  .bss : {{ *(.bss*) *(COMMON) }} }}\n")
        run([*compiler_command("zig"), *flags[:3], "-nostdlib", "-Wl,--gc-sections", "-Wl,-e,vt_predict", *roots,
             f"-Wl,-T,{script}", "-o", str(image), *(str(o) for o in objects)], folder, build_folder)
        elf = Elf(image)
        return Firmware(frozenset(), elf.flash_bytes, weights_bytes, elf.ram, stack, chain)
