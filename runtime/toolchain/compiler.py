"""C compilers: which there are, how they are called, whether one can be used.

The compiler is zig's clang from the `ziglang` package unless a system gcc or clang is asked for.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import ToolchainError
from runtime.toolchain.cache import cache_folder

LEVELS = ("-O0", "-O1", "-O2", "-O3", "-Os")
CPUS = ("native", "baseline")
WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror")
EXACT = ("-ffp-contract=off", "-fno-math-errno")                    # the same bits everywhere; sqrtf, fmaf as instructions
ZIG_ONLY = ("-fno-sanitize=undefined", "-fno-stack-protector")      # what zig adds by itself, for a library to serve
LINK = ("-O3", "-shared")       # the level is for zig, which builds its own run-time library once for each
DEFINE = re.compile(r"[A-Za-z_]\w*(=[^\0]*)?")
CHECK = "int vt_check(void);\nint vt_check(void) { return 42; }\n"
SECONDS = 300                   # after which a program that only has to compile a line is none


@dataclass(frozen=True)
class Build:
    """How to build for this machine. compiler: "zig", "gcc", "clang" or a path; optimise: one of LEVELS (the dash may be
    left out); cpu: "native" or "baseline"; defines: NAME or NAME=VALUE.

    Raises ToolchainError for anything else: no other flag may come in, for -ffast-math changes the bits.
    """

    compiler: str = "zig"
    optimise: str = "-O3"
    cpu: str = "native"
    defines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        level = self.optimise if self.optimise.startswith("-") else f"-{self.optimise}"
        if level not in LEVELS:
            raise ToolchainError(f"{self.optimise!r} is no optimisation level: choose one of {', '.join(LEVELS)}")
        object.__setattr__(self, "optimise", level)
        if self.cpu not in CPUS:
            raise ToolchainError(f"{self.cpu!r} is no CPU to build for: choose one of {', '.join(CPUS)}")
        for define in self.defines:
            if not DEFINE.fullmatch(define):
                raise ToolchainError(f"{define!r} is no definition: write NAME or NAME=VALUE")

    @property
    def cpu_flags(self) -> tuple[str, ...]:
        if self.compiler == "zig":      # zig's default is the native CPU
            return ("-mcpu=baseline",) if self.cpu == "baseline" else ()
        if self.cpu == "baseline":
            return ()
        return ("-mcpu=native",) if platform.machine() in ("aarch64", "arm64") else ("-march=native",)

    @property
    def flags(self) -> tuple[str, ...]:
        extra = ZIG_ONLY if self.compiler == "zig" else ()
        return (self.optimise, *self.cpu_flags, *WARNINGS, *EXACT, *extra, *(f"-D{d}" for d in self.defines))


HOST_BUILDS = {
    "zig -O0": Build(optimise="-O0", cpu="baseline"),
    "zig -O3 baseline": Build(cpu="baseline"),
    "zig -O3 native": Build(),
    "gcc -O0": Build("gcc", "-O0", "baseline"),
    "gcc -O3 native": Build("gcc"),
    "clang -O3 native": Build("clang"),
}


def available_builds() -> dict[str, Build]:
    """The builds of HOST_BUILDS whose compiler is on this machine: all must give the same bits."""
    zig = importlib.util.find_spec("ziglang") is not None
    return {name: b for name, b in HOST_BUILDS.items() if (zig if b.compiler == "zig" else shutil.which(b.compiler))}


def compiler_command(compiler: str) -> list[str]:
    """The command line's beginning. Raises ToolchainError where the compiler is missing."""
    if compiler == "zig":
        spec = importlib.util.find_spec("ziglang")
        if spec is None or spec.origin is None:
            raise ToolchainError("the ziglang package is not installed: pip install ziglang, or ask for a system "
                                 "compiler (gcc, clang)")
        return [str(Path(spec.origin).with_name("zig")), "cc"]
    path = shutil.which(compiler)
    if path is None:
        raise ToolchainError(f"compiler {compiler} is not on the PATH: install it or use the default, zig")
    return [os.path.abspath(path)]


def check_compiler(build: Build) -> None:
    """Raises ToolchainError, in one line, unless the compiler takes our flags and its code runs on this machine."""
    cannot = f"compiler {build.compiler} cannot be used"
    with temporary_folder("vit-compiler-") as name:
        room = Path(name)
        (room / "check.c").write_text(CHECK)
        try:
            command = compiler_command(build.compiler)
            run([*command, *build.flags, "-fPIC", "-c", "check.c", "-o", "check.o"], room, room)
            run([*command, *LINK, *build.cpu_flags, "-o", "check.so", "check.o"], room, room)
        except ToolchainError as error:
            raise ToolchainError(f"{cannot}: {' '.join(str(error).split())}") from None
        try:
            answer = ctypes.CDLL(str(room / "check.so")).vt_check()
        except (OSError, AttributeError) as error:
            raise ToolchainError(f"{cannot}: what it makes does not run on this machine ({error})") from None
        if answer != 42:
            raise ToolchainError(f"{cannot}: a function that returns 42 returned {answer}")


def temporary_folder(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """A folder that is removed at the end of its `with` block, or with Python. Raises ToolchainError."""
    try:
        return tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)
    except OSError as error:
        raise ToolchainError(f"no temporary folder can be made ({error.strerror or error}): free some disk space, or set "
                             "TMPDIR to a folder that can be written") from None


def environment(build_folder: Path) -> dict[str, str]:
    """zig keeps what it builds once (its C runtime) in the user's cache; all else stays in the build folder."""
    env = dict(os.environ, ZIG_LOCAL_CACHE_DIR=str(build_folder / "zig-cache"), TMPDIR=str(build_folder), LC_ALL="C")
    if "ZIG_GLOBAL_CACHE_DIR" not in env:
        env["ZIG_GLOBAL_CACHE_DIR"] = str(cache_folder() / "zig")
    return env


def run(command: list[str], cwd: Path, build_folder: Path) -> None:
    """Runs a compiler. Raises ToolchainError with its first errors."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, cwd=cwd, env=environment(build_folder), stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ToolchainError(f"{name} did not end within {SECONDS} s") from None
    except OSError as error:
        raise ToolchainError(f"{name} cannot be run: {error.strerror or error}") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line] or \
            done.stderr.splitlines() or [f"exit status {done.returncode}, without a word"]
        raise ToolchainError(f"{name} failed in {cwd.name}/ ({' '.join(command[-4:])}):\n  " + "\n  ".join(lines[:8]))


@functools.cache
def compiler_version(compiler: str) -> str:
    """What the compiler says about itself. Raises ToolchainError."""
    command = compiler_command(compiler)
    try:
        with temporary_folder("vit-compiler-") as room:         # zig asks for its folders to answer this, too
            done = subprocess.run([*command, "--version"], env=environment(Path(room)), stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolchainError(f"compiler {compiler} cannot be run: {error}") from None
    return done.stdout
