"""What the emitted folder promises to whoever builds it: no warning at any level, no library, with make and with CMake."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compilation.program import Program
from runtime.codegen import Generated
from runtime.codegen.generate import KERNELS
from runtime.errors import ToolchainError
from runtime.toolchain import Elf, undefined_symbols
from runtime.toolchain.build import compile_objects
from runtime.toolchain.compiler import EXACT, LEVELS, environment
from tests.runtime import toy

Write = Callable[[Program], Generated]
ZIG = f"{sys.executable} -m ziglang"
ARM = "arm-none-eabi-gcc -mthumb"
CORES = {"M7": f"{ARM} -mcpu=cortex-m7 -mfpu=fpv5-d16 -mfloat-abi=hard", "M4": f"{ARM} -mcpu=cortex-m4 -mfpu=fpv4-sp-d16 "
         "-mfloat-abi=hard", "M3 without an FPU": f"{ARM} -mcpu=cortex-m3"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Path:
    """An emitted folder with all kernels that there are."""
    folder = tmp_path_factory.mktemp("emitted") / "c"
    shutil.copytree(toy_folder, folder)
    for path in KERNELS.glob("*.[ch]"):
        shutil.copyfile(path, folder / path.name)
    return folder


def make(folder: Path, cc: str, ar: str, flags: str, all_kernels: bool = True) -> list[Path]:
    """The objects of `make`, which may not warn."""
    sources = sorted(p.name for p in folder.iterdir() if p.suffix in (".c", ".S"))
    for path in [*folder.glob("*.o"), *folder.glob("*.a")]:
        path.unlink()
    done = subprocess.run(["make", f"-j{os.cpu_count()}", f"CC={cc}", f"AR={ar}", f"CFLAGS={flags} -Werror",
                           *([f"SOURCES={' '.join(sources)}"] if all_kernels else [])],
                          cwd=folder, capture_output=True, text=True, env=environment(folder))
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    assert (folder / "libvit_train.a").stat().st_size > 1000
    return sorted(folder.glob("*.o"))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("compiler", ["gcc", "zig"])
def test_make_warns_of_nothing_and_needs_nothing_at_any_level(folder: Path, compiler: str, level: str) -> None:
    if compiler == "gcc" and not shutil.which("gcc"):
        pytest.skip("no gcc here")
    cc, ar = ("gcc", "ar") if compiler == "gcc" else (f"{ZIG} cc", f"{ZIG} ar")
    assert undefined_symbols(make(folder, cc, ar, level)) == set()


@pytest.mark.parametrize("core", CORES)
def test_a_core_needs_at_most_its_compilers_soft_floats(folder: Path, core: str) -> None:
    if not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("no arm-none-eabi-gcc here")
    objects = make(folder, CORES[core], "arm-none-eabi-ar", "-Os")
    undefined = undefined_symbols(objects)
    assert all(name.startswith(("__aeabi_f", "__aeabi_d", "__aeabi_i2f", "__aeabi_ui2f")) for name in undefined), undefined
    assert bool(undefined) == (core == "M3 without an FPU")
    libgcc = ["-lgcc"] if undefined else []
    subprocess.run([*CORES[core].split(), "-nostdlib", "-Wl,-e,vt_init", "-Wl,--whole-archive", "libvit_train.a",
                    "-Wl,--no-whole-archive", *libgcc, "-o", "firmware.elf"], cwd=folder, check=True)


def test_the_makefile_lists_exactly_the_folder(write_toy: Write) -> None:
    folder = write_toy(toy.program()).folder
    objects = make(folder, f"{ZIG} cc", f"{ZIG} ar", "-O2", all_kernels=False)
    assert {o.stem for o in objects} == {p.stem for p in folder.iterdir() if p.suffix in (".c", ".S")}
    defined = {s.name for o in objects for s in Elf(o).symbols if s.defined}
    assert {"vt_init", "vt_train_step", "vt_predict", "vt_weights", "memset"} <= defined
    subprocess.run(["make", "clean"], cwd=folder, check=True, capture_output=True)
    assert not list(folder.glob("*.o")) and not (folder / "libvit_train.a").exists()


def test_cmake_builds_the_same_library(write_toy: Write, tmp_path: Path) -> None:
    if not shutil.which("cmake") or not shutil.which("gcc"):
        pytest.skip("no cmake or no gcc here")
    folder = write_toy(toy.program()).folder
    for arguments in (["-S", str(folder), "-B", str(tmp_path), "-DCMAKE_C_COMPILER=gcc", "-DCMAKE_C_FLAGS=-Werror"],
                      ["--build", str(tmp_path)]):
        subprocess.run(["cmake", *arguments], check=True, capture_output=True)
    objects = sorted(tmp_path.rglob("vit_train.dir/*.o"))
    assert (tmp_path / "libvit_train.a").is_file() and undefined_symbols(objects) == set()


@pytest.mark.parametrize("flag", ["-ffast-math", "-ffinite-math-only"])
def test_fast_math_is_refused_by_the_code_itself(folder: Path, tmp_path: Path, flag: str) -> None:
    with pytest.raises(ToolchainError, match="build without it"):
        compile_objects([folder / "vit_train.c"], ("-O2", flag, *EXACT), "zig", tmp_path)
