"""Compilers are checked before work is done; builds work from anywhere, at once, and leave nothing behind."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.errors import ToolchainError
from runtime.simulator import Simulator
from runtime.toolchain import Build, build_firmware, build_shared, cache, check_compiler
from runtime.toolchain.build import compile_objects
from runtime.toolchain.compiler import compiler_version
from tests.runtime import toy


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The cache folder is chosen anew, here and after the test; zig's own stays where it is."""
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(cache.cache_folder() / "zig")))
    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


def forget() -> None:
    for choice in (cache.cache_folder, cache.temporary, cache.cpu_identity):
        choice.cache_clear()


# -- what is refused -----------------------------------------------------------------------------------
@pytest.mark.parametrize("level", ["-O9", "-Ofast", "fast-math", "-ffast-math", "-O2 -ffast-math", "", "-O", "3", "O4"])
def test_only_known_levels_are_taken(level: str) -> None:
    with pytest.raises(ToolchainError, match="is no optimisation level: choose one of -O0, -O1, -O2, -O3, -Os"):
        Build(optimise=level)


def test_the_dash_of_a_level_may_be_left_out() -> None:
    assert Build(optimise="O2") == Build(optimise="-O2") and "-O2" in Build(optimise="O2").flags


@pytest.mark.parametrize("wrong", [{"cpu": "-ffast-math"}, {"cpu": "cortex"}, {"defines": ("X -ffast-math\0",)},
                                   {"defines": ("-O2",)}])
def test_no_flag_comes_in_by_another_door(wrong: dict[str, str]) -> None:
    with pytest.raises(ToolchainError, match=r"choose one of|is no definition"):
        Build(**wrong)  # type: ignore[arg-type]


def test_the_default_compiler_can_be_used() -> None:
    check_compiler(Build())
    if shutil.which("gcc"):
        check_compiler(Build("gcc", "-O0", "baseline"))


def script(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_what_is_no_compiler_is_refused_in_one_line(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not executable")
    cases = {
        "no-such-cc": "not on the PATH",
        str(plain): "not on the PATH",
        str(tmp_path): "not on the PATH",
        script(tmp_path / "garbage", "\x7fELF garbage"): "cannot be run",
        script(tmp_path / "lazy", "#!/bin/sh\nexit 0\n"): "does not run on this machine",
        script(tmp_path / "silent", "#!/bin/sh\nexit 3\n"): "exit status 3, without a word",
        script(tmp_path / "picky cc", "#!/bin/sh\necho 'error: unknown flag' >&2; exit 1\n"): "unknown flag",
    }
    if shutil.which("gcc"):
        cases[script(tmp_path / "old", "#!/bin/sh\nfor a; do case $a in -ffp-contract=off) echo \"error: no $a\" >&2; "
                     "exit 1;; esac; done\nexec gcc \"$@\"\n")] = "no -ffp-contract=off"
    for compiler, text in cases.items():
        with pytest.raises(ToolchainError, match=text) as error:
            check_compiler(Build(compiler, cpu="baseline"))
        assert compiler in str(error.value) and "\n" not in str(error.value)


def test_a_version_is_asked_for_with_folders_that_can_be_written(tmp_path: Path, anew: pytest.MonkeyPatch) -> None:
    """Without its cache folder given, zig falls back on HOME even to say its version, and may never come back."""
    anew.delenv("ZIG_GLOBAL_CACHE_DIR")
    anew.setenv("HOME", "/proc")
    anew.delenv("XDG_CACHE_HOME", raising=False)
    command = script(tmp_path / "cc", "#!/bin/sh\necho \"$ZIG_GLOBAL_CACHE_DIR\"\n")
    assert Path(compiler_version(command).strip()).parent == cache.cache_folder()


def test_a_compiler_for_another_machine_is_refused() -> None:
    if not shutil.which("arm-none-eabi-gcc"):
        pytest.skip("no arm-none-eabi-gcc here")
    with pytest.raises(ToolchainError, match="cannot be used"):
        check_compiler(Build("arm-none-eabi-gcc", cpu="baseline"))


# -- where builds happen -------------------------------------------------------------------------------
def test_relative_folders(toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(toy_folder, tmp_path / "c")
    monkeypatch.chdir(tmp_path)
    assert build_shared(Path("c"), Path("made/here/out.so"), Build()).stat().st_size > 1000
    assert sorted((tmp_path / "made").rglob("*")) == [tmp_path / "made/here", tmp_path / "made/here/out.so"]
    assert not build_firmware(Path("c")).undefined
    with Simulator("c", toy.program("cols", momentum=0.5)) as simulator:
        assert simulator.trained()


def test_a_failed_build_leaves_nothing(tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(toy_folder, tmp_path / "c")
    (tmp_path / "c/toy.c").write_text("broken")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(ToolchainError, match=r"toy\.c:1"):
        build_shared(tmp_path / "c", tmp_path / "made/out.so", Build())
    with pytest.raises(ToolchainError):
        Simulator(tmp_path / "c", toy.program("cols", momentum=0.5))
    assert not (tmp_path / "made").exists() and list((tmp_path / "temporary").iterdir()) == []
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(ToolchainError, match="taken cannot be written"):
        build_shared(toy_folder, taken, Build())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "taken", "temporary"]


def test_ctrl_c_leaves_no_temporary_folder(toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for where in ("runtime.toolchain.build.run", "runtime.toolchain.build.move", "runtime.simulator.simulator.ctypes.CDLL"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(where, stop)
            Simulator(toy_folder, toy.program("cols", momentum=0.5))
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["with spaces", "größe-模型", "comma, and 'quote'", "-Wl"])
def test_paths_of_every_kind(toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / name / "c"
    shutil.copytree(toy_folder, folder)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with Simulator(folder, toy.program("cols", momentum=0.5)) as simulator:
        assert simulator.trained()
    assert not build_firmware(folder).undefined


def test_without_home_and_with_a_tmpdir_that_is_not_there(toy_folder: Path, tmp_path: Path) -> None:
    code = f"""if True:
        from pathlib import Path
        from runtime.toolchain import Build, build_shared
        build_shared(Path({str(toy_folder)!r}), Path({str(tmp_path / "out.so")!r}), Build("zig"))"""
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    env |= {"TMPDIR": str(tmp_path / "missing"), "ZIG_GLOBAL_CACHE_DIR": str(cache.cache_folder() / "zig")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "out.so").is_file(), done.stderr


def test_no_temporary_folder_at_all_is_one_line(toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(ToolchainError, match=r"no temporary folder can be made .*TMPDIR"):
        build_shared(toy_folder, tmp_path / "out.so", Build())


# -- the cache -----------------------------------------------------------------------------------------
def test_objects_are_kept_by_cpu_and_everything_else_that_makes_them(tmp_path: Path, anew: pytest.MonkeyPatch) -> None:
    source = tmp_path / "x.c"
    source.write_text("int x = 1;\n")
    anew.setattr(cache, "cpu_identity", lambda: "one CPU")
    key = cache.object_key(source, ("-O3", "-march=native"), "gcc 12")
    assert key == cache.object_key(source, ("-O3", "-march=native"), "gcc 12")
    others = {cache.object_key(source, ("-O2", "-march=native"), "gcc 12"),
              cache.object_key(source, ("-O3", "-march=native"), "gcc 13")}
    anew.setattr(cache, "cpu_identity", lambda: "another CPU of the same kind of machine")
    others.add(cache.object_key(source, ("-O3", "-march=native"), "gcc 12"))
    (tmp_path / "x.h").write_text("\n")
    others.add(cache.object_key(source, ("-O3", "-march=native"), "gcc 12"))
    assert len({key, *others}) == 5


def test_the_cpu_is_known_by_its_features_not_by_the_hosts_name(anew: pytest.MonkeyPatch) -> None:
    lines = "processor : {n}\nmodel name : {model}\nflags : fpu {flag}\ncpu MHz : {n}100\n\n"

    def identity(*cores: tuple[str, str]) -> str:
        text = "".join(lines.format(n=i, model=m, flag=f) for i, (m, f) in enumerate(cores))
        anew.setattr(Path, "read_text", lambda *_, **__: text)
        cache.cpu_identity.cache_clear()
        return cache.cpu_identity()

    one = identity(("Zen", "avx2"), ("Zen", "avx2"))
    assert one == identity(("Zen", "avx2")), "the number of cores and their clocks do not matter"
    others = {identity(("Zen", "avx512")), identity(("Xeon", "avx2")), identity(("Zen", "avx2"), ("small", "avx2"))}
    assert len({one, *others}) == 4


def test_a_second_build_takes_objects_from_the_cache(toy_folder: Path, tmp_path: Path, anew: pytest.MonkeyPatch) -> None:
    anew.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = build_shared(toy_folder, tmp_path / "a.so", Build()).read_bytes()
    kept = sorted(p.name for p in (tmp_path / "cache/vit-train-objects").iterdir())
    assert len(kept) == 2 and all(n.endswith(".o") for n in kept), kept      # toy.c and vt_support.c
    anew.setattr(cache, "store", lambda *_: pytest.fail("built again"))
    assert build_shared(toy_folder, tmp_path / "b.so", Build()).read_bytes() == first


def test_a_cache_that_cannot_be_written_is_done_without(toy_folder: Path, tmp_path: Path, anew: pytest.MonkeyPatch) -> None:
    (tmp_path / "a-file").touch()
    for home in (str(tmp_path / "a-file"), "relative/cache"):
        forget()
        anew.chdir(tmp_path)
        anew.setenv("XDG_CACHE_HOME", home)
        anew.setenv("HOME", str(tmp_path / "a-file"))
        folder = cache.cache_folder()
        assert folder.is_absolute() and tmp_path not in folder.parents
        build_shared(toy_folder, tmp_path / "out.so", Build())
        cache.temporary().cleanup()
        assert not folder.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a-file", "out.so"]


def test_a_full_disk_under_the_cache_is_done_without(toy_folder: Path, tmp_path: Path, anew: pytest.MonkeyPatch) -> None:
    anew.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = cache.cache_folder()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    anew.setattr(cache.tempfile, "NamedTemporaryFile", full)
    compile_objects([toy_folder / "toy.c"], ("-O2",), "zig", tmp_path / "build")
    assert list(folder.iterdir()) == []


def test_builds_at_the_same_time_share_the_cache(toy_folder: Path, tmp_path: Path, anew: pytest.MonkeyPatch) -> None:
    anew.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: build_shared(toy_folder, tmp_path / f"{i}.so", Build()).read_bytes(), range(4)))
    assert len(set(made)) == 1
    assert {p.suffix for p in (tmp_path / "cache/vit-train-objects").iterdir()} == {".o"}


def test_the_cache_keeps_what_was_used_last_and_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = cache.time.time()
    monkeypatch.setattr(cache, "KEEP_BYTES", 250)
    for name, age in {"new.o": 0, "used.o": 100, "third.o": 200, "ancient.o": 10**8, "half.part": 10**4, "at-work.part": 1,
                      "note.txt": 10**8}.items():
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (now - age, now - age))
    (tmp_path / "zig.d").mkdir()
    cache.prune(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["at-work.part", "new.o", "note.txt", "used.o", "zig.d"]
