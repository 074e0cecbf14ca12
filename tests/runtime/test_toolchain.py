"""Compilers: the real kernels build for a bare core without help, errors are clear, sizes are read right."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.codegen.generate import KERNELS, STACK_BYTES
from runtime.errors import ToolchainError
from runtime.toolchain import CORTEX_M7, Build, Elf, build_shared, undefined_symbols
from runtime.toolchain.build import compile_objects
from runtime.toolchain.compiler import EXACT, WARNINGS, ZIG_ONLY, compiler_command, environment
from runtime.toolchain.stack import deepest, read_frames


def test_every_kernel_compiles_for_a_bare_cortex_m7_without_an_undefined_symbol(tmp_path: Path) -> None:
    sources = sorted(KERNELS.glob("*.c"))
    assert sources
    objects = compile_objects(sources, (*CORTEX_M7, *WARNINGS, *EXACT, *ZIG_ONLY), "zig", tmp_path)
    assert undefined_symbols(objects) == set()
    for path in objects:
        assert Elf(path).ram == {}, f"{path.name} has writable memory of its own"


def test_a_missing_compiler_is_one_clear_error() -> None:
    with pytest.raises(ToolchainError, match="no-such-cc is not on the PATH: install it or use the default"):
        compiler_command("no-such-cc")


def test_a_compile_error_names_file_and_line(toy_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    for path in toy_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    source = folder / "vit_train.c"
    source.write_text(source.read_text() + "int broken(void) { return x; }\n")
    with pytest.raises(ToolchainError, match=r"(?s)vit_train\.c:\d+.*error"):
        build_shared(folder, tmp_path / "build/out.so", Build())


def test_a_folder_without_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match="holds no generated C code"):
        build_shared(tmp_path, tmp_path / "out.so", Build())


def test_elf_reader_tells_flash_from_ram(tmp_path: Path) -> None:
    source = tmp_path / "x.c"
    source.write_text("const int table[10] = {1}; int data[3] = {1}; int zero[5];\n"
                      "extern int other; int f(void); int f(void) { return other; }\n")
    (path,) = compile_objects([source], (*CORTEX_M7, "-fno-data-sections"), "zig", tmp_path)
    elf = Elf(path)
    assert not elf.wide and elf.bytes_of(".rodata") == 40
    assert elf.ram == {".data": 12, ".bss": 20}
    assert undefined_symbols([path]) == {"other"}
    with pytest.raises(ToolchainError, match="no little-endian ELF"):
        Elf(source)


def test_deepest_stack_follows_the_calls(tmp_path: Path) -> None:
    """Three functions with known buffers: the figure is the chain's sum; recursion has no bound."""
    source = tmp_path / "deep.c"
    source.write_text("""
        static __attribute__((noinline)) int leaf(int n) { volatile char b[1000]; b[n] = 1; return b[n / 2]; }
        static __attribute__((noinline)) int low(int n) { volatile char b[40]; b[n] = 1; return leaf(b[n]) + b[1]; }
        int root(int n);
        int root(int n) { volatile char b[200]; b[n] = 1; return low(b[n]) + leaf(n) + b[n / 2]; }
        int loop(int n);
        int loop(int n) { volatile char b[9]; b[n] = 1; return n ? loop(n - 1) + b[n / 2] : 0; }
        """)
    objects = compile_objects([source], CORTEX_M7, "zig", tmp_path)
    frames = read_frames(objects)
    size, chain = deepest(frames, ("root",))
    assert chain == ["root", "deep:low", "deep:leaf"]
    assert 1240 <= size <= 1240 + 3 * 24
    with pytest.raises(ToolchainError, match="loop calls itself"):
        deepest(frames, ("loop",))


def test_kernels_stay_within_the_stack_reserve(tmp_path: Path) -> None:
    objects = compile_objects(sorted(KERNELS.glob("*.c")), (*CORTEX_M7, *WARNINGS, *EXACT, *ZIG_ONLY), "zig", tmp_path)
    frames = read_frames(objects)
    size, chain = deepest(frames, tuple(frames.size))
    assert 0 < size <= STACK_BYTES - 512, f"{size} bytes: {' > '.join(chain)}"


def test_the_generated_makefile_builds_a_library(toy_folder: Path, tmp_path: Path) -> None:
    make = shutil.which("make")
    assert make, "make is needed to set the project up"
    folder = tmp_path / "c"
    shutil.copytree(toy_folder, folder)
    zig = f"{sys.executable} -m ziglang"
    done = subprocess.run([make, f"CC={zig} cc", f"AR={zig} ar"], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, **environment(tmp_path)})
    assert done.returncode == 0, done.stderr
    defined = {s.name for o in folder.glob("*.o") for s in Elf(o).symbols if s.defined}
    assert (folder / "libvit_train.a").stat().st_size > 1000 and {"vt_train_step", "vt_weights"} <= defined
