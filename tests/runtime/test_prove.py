"""python -m runtime: what it proves, what it refuses and when, and that it leaves what is not its own alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from algorithm import build_model, record_trace
from algorithm.models import ModelConfig
from algorithm.models.vit import input_scale_shift
from algorithm.sparse import resolve_plan
from algorithm.sparse.config import PlanConfig
from compilation.capture import InputSpec
from compilation.pipeline import Compiler
from runtime.__main__ import main, read_arguments
from runtime.codegen import generate
from runtime.toolchain import HOST_BUILDS, Build

STEPS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`: what the main job leaves that is read here; `compiled`: what `python -m compilation` leaves."""
    torch.manual_seed(0)
    room = tmp_path_factory.mktemp("made")
    model = build_model(ModelConfig(name="vit_tiny_patch16_224", img_size=16, patch_size=8, num_classes=3, weights="none",
                                    head_init="timm", gram={"enabled": False},
                                    extra={"embed_dim": 24, "depth": 1, "num_heads": 2}))
    plan = resolve_plan(PlanConfig(enable_backward_config=False), model)
    scale, shift = input_scale_shift(model)
    compiled = Compiler(model, InputSpec((3, 16, 16), scale, shift), "small").compile(dict(plan.to_dict()["parameters"]))
    rng = np.random.default_rng(0)
    record_trace(model, plan, rng.integers(0, 256, (STEPS, 16, 16, 3), dtype=np.uint8), rng.integers(0, 3, STEPS), 0.05, 0.0,
                 room / "trace.safetensors")
    for name in ("run", "compiled"):
        (room / name).mkdir()
        (room / name / "program.json").write_text(compiled.program.to_json())
    (room / "trace.safetensors").rename(room / "run/trace.safetensors")
    generate(compiled.program, compiled.values, room / "run/c")
    save_file({n: np.ascontiguousarray(v) for n, v in compiled.values.items()}, room / "compiled/values.safetensors")
    return room


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Iterator[Path]:
    """A run folder of one's own; after the test no temporary folder is left."""
    shutil.copytree(made / "run", tmp_path / "a run [red] {x}")
    temporary, tempfile.tempdir = tempfile.tempdir, str(tmp_path / "temporary")
    (tmp_path / "temporary").mkdir()
    yield tmp_path / "a run [red] {x}"
    tempfile.tempdir = temporary
    assert list((tmp_path / "temporary").iterdir()) == []


def state(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def nothing_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.simulator.simulator.build_shared", lambda *_: pytest.fail("something was built"))


# -- arguments -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arguments", [
    ["--optimise", "-O2"], ["--optimise=-O2"], ["--optimise", "O2"], ["--optimize", "-O2"],
    ["-O2"], ["-O", "2"], ["-O", "O2"]])
def test_a_level_may_be_written_as_anyone_writes_it(arguments: list[str]) -> None:
    for whole in (["RUN", *arguments], [*arguments, "RUN"]):
        options = read_arguments(whole)
        assert Build(optimise=options.optimise).optimise == "-O2" and options.folder == Path("RUN")


@pytest.mark.parametrize(("arguments", "text"), [
    (["--steps", "0"], "0 steps prove nothing"), (["--steps", "-2"], "-2 steps prove nothing"),
    (["--steps", "x"], "no whole number"), (["--steps", "1.5"], "no whole number"),
    (["--cpu", "z80"], "invalid choice"), (["--step", "1"], "unrecognized"),
    (["--optimise"], "expected one argument")])
def test_wrong_arguments_are_refused_before_anything_is_read(arguments: list[str], text: str,
                                                             capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["no such folder", *arguments])
    assert stop.value.code == 2 and text in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["--nonsense"], ["RUN", "--optimise", "-O9"], ["no such folder"]])
def test_cheap_answers_import_nothing_heavy(arguments: list[str]) -> None:
    code = ("import sys\nfrom runtime.__main__ import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
            "print(sorted({'numpy', 'torch', 'rich', 'safetensors', 'jinja2', 'tvm', 'timm'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout


# -- what is refused before anything is built ------------------------------------------------------------
Change = Callable[[Path], None]


def cut(name: str, share: float = 0.5) -> Change:
    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:int(len(data) * share)])
    return change


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text) and None


def edit(name: str, old: str, new: str) -> Change:
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
    return change


def remove(name: str) -> Change:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def retrace(**changes: np.ndarray) -> Change:
    """The trace with other arrays."""
    def change(folder: Path) -> None:
        from safetensors import safe_open
        path = folder / "trace.safetensors"
        with safe_open(str(path), "np") as file:
            metadata = file.metadata()
        save_file({**load_file(path), **changes}, path, metadata)
    return change


REFUSED: dict[str, tuple[Change, str]] = {
    "no program": (remove("program.json"), "program.json is missing"),
    "no trace": (remove("trace.safetensors"), "trace.safetensors is missing"),
    "no c": (remove("c"), "c/vit_train.c is missing"),
    "no header": (remove("c/vit_train.h"), "vit_train.h is missing"),
    "program cut": (cut("program.json"), "program.json"),
    "program empty": (write("program.json", ""), "program.json"),
    "program a list": (write("program.json", "[1, 2]"), "program.json"),
    "program without calls": (write("program.json", json.dumps({"name": "x", "tensors": {}})), "program.json"),
    "trace cut": (cut("trace.safetensors"), "trace.safetensors"),
    "trace's header cut": (cut("trace.safetensors", 0.001), "trace.safetensors"),
    "trace empty": (write("trace.safetensors", ""), "trace.safetensors"),
    "trace of other images": (retrace(images=np.zeros((STEPS, 8, 8, 3), np.uint8)), "belong to different models"),
    "trace of float images": (retrace(images=np.zeros((STEPS, 16, 16, 3), np.float32)), "belong to different models"),
    "trace of other labels": (retrace(labels=np.array([0, 1, 7])), "labels reach from 0 to 7"),
    "weights cut": (cut("c/weights.bin"), "weights.bin is truncated"),
    "weights empty": (write("c/weights.bin", ""), "weights.bin is truncated"),
    "weights edited": (lambda f: (f / "c/weights.bin").write_bytes(bytes(len((f / "c/weights.bin").read_bytes()))) and None,
                       "weights.bin is damaged: its sha256"),
    "c of another program": (edit("c/vit_train.h", "#define VT_ARENA_BYTES ", "#define VT_ARENA_BYTES 1"),
                             "generated from another Program: VT_ARENA_BYTES"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_damaged_run_folder_is_refused_in_one_line(folder: Path, name: str, capsys: pytest.CaptureFixture[str],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    change, text = REFUSED[name]
    change(folder)
    before = state(folder)
    nothing_built(monkeypatch)
    assert main([str(folder)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert text in err and str(folder) in err
    assert state(folder) == before


@pytest.mark.parametrize(("arguments", "text"), [
    (["--steps", str(STEPS + 1)], "the trace has 3"), (["--compiler", "tcc-[red]"], "tcc-[red] is not on the PATH"),
    (["--compiler", "/bin/true", "--cpu", "baseline"], "compiler /bin/true cannot be used"),
    (["-O9"], "'-O9' is no optimisation level"), (["--optimise", "-Ofast"], "'-Ofast' is no optimisation level")])
def test_arguments_that_do_not_fit_are_refused_before_anything_is_built(
        folder: Path, arguments: list[str], text: str, capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_built(monkeypatch)
    assert main([str(folder), *arguments]) == 2
    err = capsys.readouterr().err
    assert text in err and err.startswith("error: ") and err.count("\n") == 1


# -- what is proven --------------------------------------------------------------------------------------
def test_a_run_is_proven_and_its_folder_stays_as_it_is(folder: Path, capsys: pytest.CaptureFixture[str],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    two = {name: HOST_BUILDS[name] for name in ("zig -O0", "zig -O3 native")}       # the integration test has them all
    monkeypatch.setattr("runtime.prove.available_builds", lambda: two)
    before = state(folder)
    assert main([str(folder), "-O2", "--builds"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "proven: the C code computes what PyTorch computes over 3 steps"
    assert out.count("same bits") == 2 and "OTHER BITS" not in out
    assert state(folder) == before


def test_some_steps_prove_only_their_losses(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder), "--steps", "2"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "the losses agree over 2 steps; the weights were not compared" in last and "proven" not in last.split("(")[0]


def test_a_wrong_kernel_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit("c/vt_loss.c", "(i == label ? 1.0f : 0.0f)", "(i == label ? 0.99f : 0.0f)")(folder)
    assert main([str(folder)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "differs: not proven"


def test_code_that_does_not_compile_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit("c/vt_loss.c", "float", "flot")(folder)
    assert main([str(folder)]) == 1
    assert "vt_loss.c:" in capsys.readouterr().err


def test_ctrl_c_is_no_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.prove.replay", stop)
    assert main([str(folder)]) == 130
    assert capsys.readouterr().err == "stopped\n"


# -- a compiled folder: its C is made here ---------------------------------------------------------------
def test_a_compiled_folder_is_built_and_says_that_nothing_is_proven(made: Path, tmp_path: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "step"
    shutil.copytree(made / "compiled", folder)
    for _ in range(2):              # the second time it replaces its own
        assert main([str(folder)]) == 0
        assert "nothing is proven: there is no recorded run here" in capsys.readouterr().out.splitlines()[-1]
    assert sorted(p.name for p in folder.iterdir()) == ["c", "program.json", "values.safetensors"]
    for argument in (["--steps", "1"], ["--builds"]):
        assert main([str(folder), *argument]) == 2
        assert "no recorded run" in capsys.readouterr().err


@pytest.mark.parametrize(("change", "text"), [
    (cut("values.safetensors"), "values.safetensors is damaged"),
    (write("values.safetensors", ""), "values.safetensors is damaged"),
    (lambda f: save_file({"x": np.zeros(1, np.float32)}, f / "values.safetensors"), "no value for"),
    (lambda f: (f / "c").mkdir() or write("c/thesis.tex", "mine")(f), "it is not replaced"),
    (lambda f: (f / "c").write_text("mine") and None, "is a file: it is not replaced"),
    (cut("program.json"), "program.json")])
def test_a_damaged_compiled_folder_is_refused_and_stays_as_it_is(made: Path, tmp_path: Path, change: Change, text: str,
                                                                 capsys: pytest.CaptureFixture[str],
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a [step]"
    shutil.copytree(made / "compiled", folder)
    change(folder)
    before = state(folder)
    nothing_built(monkeypatch)
    assert main([str(folder)]) == 2
    err = capsys.readouterr().err
    assert text in err and str(folder) in err and err.count("\n") == 1
    assert state(folder) == before
