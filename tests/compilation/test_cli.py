"""The command lines of the compiler: what is wrong is refused in one line, before work, and files of others stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from compilation.__main__ import main, parser
from compilation.command import timm_model
from compilation.place import main as place_main
from compilation.program_file import from_json
from compilation.request import check

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.head = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 4)
        self.idle = nn.Linear(6, 6)
        setattr(self, "w[0]", nn.Parameter(torch.ones(6)))
    def forward(self, x):
        return self.head(self.norm(self.a(x)) * getattr(self, "w[0]"))

class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(4, 6))
    def forward(self, x):
        return x @ self.w.t()

def net(): return Net(), (6,)
def bare(): return Bare(), (6,)
def empty(): return nn.Identity(), (6,)
def shapeless(): return Net()
def chatty():
    print("a word")
    return Net(), (6,)
def image(): return nn.Sequential(nn.Flatten(), nn.Linear(4 * 2 * 2, 3)), (4, 2, 2)
def wants(n): return Net(), (6,)
def raises(): raise ValueError("no such thing\\nand more")
def leaves(): raise SystemExit(3)
def other(): return 7
def nothing(): return None
def odd(): return Net(), (6, -1)
value = 3
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with a module of factories."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("factories", "broken", "absent"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "factories.py").write_text(MODELS)
    (tmp_path / "broken.py").write_text("def net(:\n")
    (tmp_path / "absent.py").write_text("import no_such_module_at_all\n")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 1) -> str:
    """The one line that refuses a command."""
    try:
        status = main(list(argv))
    except SystemExit as stop:        # argparse
        status = int(stop.code or 0)
    err = capsys.readouterr().err.strip()
    assert status == code, err
    assert code == 2 or ("\n" not in err and err.startswith("error: ")), err
    assert "Traceback" not in err
    return err


PLANS: dict[str, tuple[str, str]] = {
    "unknown": ("version: 1\nparameters: {blocks.99.norm1.bias: all}", r"trains 'blocks.99.norm1.bias', which the model "
                                                                       r"does not have"),
    "misspelt key": ("version: 1\nparamters: {a.bias: all}", "paramters"),
    "empty list": ("version: 1\nparameters: {a.weight: {cols: []}}", "cols is empty"),
    "tab": ("version: 1\nparameters:\n\ta.bias: all", "cannot read|tab|line"),
    "empty": ("", "mapping"), "list": ("- a.bias\n", "mapping"), "text": ("a.bias", "mapping"),
    "nothing": ("version: 1\nparameters: {a.bias: none}", "trains nothing"),
    "outside": ("version: 1\nparameters: {a.weight: {cols: [6]}}", r"cols index 6 is outside 0\.\.5"),
    "descending": ("version: 1\nparameters: {a.weight: {rows: [2, 1]}}", "ascending"),
    "vector": ("version: 1\nparameters: {a.bias: {rows: [1]}}", "only matrices have columns and rows"),
    "unused": ("version: 1\nparameters: {idle.bias: all}", "idle.bias.*does not use"),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_file_is_read_whole_or_refused(home: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    import re

    text, match = PLANS[name]
    (home / "plan.yaml").write_text(text)
    assert re.search(match, refused(capsys, "factories:net", "--plan", "plan.yaml"))
    assert not (home / "build").exists()


def test_a_plan_file_that_is_none(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "folder.yaml").mkdir()
    for name in ("missing.yaml", "folder.yaml"):
        assert name in refused(capsys, "factories:net", "--plan", name)


LINES: dict[str, tuple[list[str], int, str]] = {
    "both": (["factories:net", "--plan", "p.yaml", "--train", "*"], 1, "--plan and --train both say what to train"),
    "size of a factory": (["factories:net", "--img_size", "32"], 1, "--img_size says nothing about a factory"),
    "classes of a factory": (["factories:net", "--classes", "10"], 1, "--classes says nothing about a factory"),
    "input of timm": (["vit_tiny_patch16_224", "--input", "3,32,32"], 1, "--input says nothing about a timm model"),
    "float of timm": (["vit_tiny_patch16_224", "--float-input"], 1, "--float-input says nothing about a timm model"),
    "no classes": (["vit_tiny_patch16_224", "--classes", "0"], 2, "'0' is no number of classes: a whole number from 2 on"),
    "no size": (["vit_tiny_patch16_224", "--img_size", "0"], 2, "'0' is no image size: a whole number from 1 on"),
    "crosses": (["factories:net", "--input", "3x4x4"], 2, "'3x4x4' is no shape"),
    "negative": (["factories:net", "--input", "3,-1,4"], 2, "'3,-1,4' is no shape"),
    "empty part": (["factories:net", "--input", "3,,4"], 2, "'3,,4' is no shape"),
    "nan": (["factories:net", "--momentum", "nan"], 2, "'nan' is no momentum: a number from 0 to below 1"),
    "large": (["factories:net", "--momentum", "2"], 2, "'2' is no momentum"),
    "one": (["factories:net", "--momentum", "1"], 2, "'1' is no momentum"),
    "below": (["factories:net", "--momentum", "-1"], 2, "'-1' is no momentum"),
    "infinite": (["factories:net", "--momentum", "inf"], 2, "'inf' is no momentum"),
    "backwards": (["factories:net", "--train", "a.weight=cols:9-3"], 2, "cols from 9 to 3 are none"),
    "half a range": (["factories:net", "--train", "a.weight=cols:3"], 2, "write NAME=cols:A-B"),
    "axis": (["factories:net", "--train", "a.weight=heads:0-1"], 2, "write NAME=cols:A-B"),
    "nothing": (["factories:net", "--train", "a.weight="], 2, "write NAME=cols:A-B"),
    "no budget": (["factories:net", "--budget", "0"], 1, "memory budget '0' is not a whole number of bytes above 0"),
    "bad budget": (["factories:net", "--budget", "2 fish"], 1, "unknown unit 'fish'"),
    "no function": (["factories:"], 1, "'factories:' is no factory: write module:function"),
    "no module": ([":net"], 1, "':net' is no factory"),
    "path": (["a/b.py:net"], 1, "'a/b.py:net' is no factory"),
    "no name": ([""], 1, "the model's name is empty"),
    "flag": (["factories:net", "--momentun", "0.9"], 2, "unrecognized arguments: --momentun"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_command_line_that_cannot_be_is_refused_before_the_model(home: Path, capsys: pytest.CaptureFixture[str],
                                                                   monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the model is being made")

    import compilation.command

    monkeypatch.setattr(compilation.command, "run", work)
    argv, code, text = LINES[name]
    assert text in refused(capsys, *argv, code=code)


FACTORIES: dict[str, tuple[list[str], str]] = {
    "syntax": (["broken:net"], "broken cannot be imported: SyntaxError"),
    "import": (["absent:net"], "absent cannot be imported: ModuleNotFoundError: No module named 'no_such_module_at_all' "
                               "(absent.py, line 1)"),
    "module": (["no_such_module_here:net"], "no_such_module_here cannot be imported: ModuleNotFoundError"),
    "function": (["factories:nett"], "factories has no function nett"),
    "value": (["factories:value"], "factories:value is a int, not a function"),
    "arguments": (["factories:wants"], "factories:wants cannot be called without arguments (missing a required argument: "
                                       "'n')"),
    "raises": (["factories:raises"], "factories:raises fails: ValueError: no such thing (factories.py, line"),
    "exit": (["factories:leaves"], "factories:leaves fails: SystemExit: 3"),
    "number": (["factories:other"], "factories:other returns a int: a torch.nn.Module is expected"),
    "nothing": (["factories:nothing"], "factories:nothing returns nothing: a torch.nn.Module is expected"),
    "shape": (["factories:odd"], "factories:odd returns the input shape (6, -1)"),
    "no shape": (["factories:shapeless"], "factories:shapeless returns no input shape: give one with --input"),
    "parameters": (["factories:empty"], "the model has no parameters: there is nothing to train"),
    "default": (["factories:bare"], "the model has no parameter that fits *.bias, *norm*, head.*"),
    "pattern": (["factories:net", "--train", "blocks.*"], "--train 'blocks.*' fits no parameter of the model (such as"),
    "unused": (["factories:net", "--train", "idle.bias"], "trains 'idle.bias', which the compiled model does not use"),
    "only unused": (["factories:net", "--train", "idle.*"], "nothing is left to train"),
    "overlap": (["factories:net", "--train", "a.weight=cols:0-2", "--train", "*.weight"],
                "--train 'a.weight=cols:0-2' and --train '*.weight' choose differently for a.weight"),
    "outside": (["factories:net", "--train", "a.weight=cols:4-6"], "a.weight: cols must be ascending, without repeats and "
                                                                   "within 0..5"),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_a_factory_that_does_not_fit_is_refused(home: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    argv, text = FACTORIES[name]
    try:
        status = main(argv)
    finally:
        captured = capsys.readouterr()
    *notes, last = captured.err.strip().splitlines()
    assert status == 1 and last.startswith("error: ") and text in last, captured.err
    assert all(n.startswith("not trained") for n in notes) and "Traceback" not in captured.err
    assert not (home / "build").exists()


def test_timm_models_that_are_none(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown timm model 'vit_tinny_patch16_224'" in refused(capsys, "vit_tinny_patch16_224")
    assert "resnet18" in refused(capsys, "resnet18")


def test_a_timm_model_has_its_own_size(home: Path) -> None:
    for argv, size, classes in [(["vit_tiny_patch16_224"], 224, 10), (["deit_tiny_patch16_224", "--img_size", "32",
                                                                       "--classes", "3"], 32, 3)]:
        model, spec = timm_model(check(parser().parse_args(argv)))
        assert spec.shape == (3, size, size) and model(torch.zeros(1, 3, size, size)).shape == (1, classes)


def test_what_is_chosen_is_what_is_trained(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names with brackets mean themselves; what a pattern fits and the model does not use is named, not just dropped."""
    assert main(["factories:chatty", "--train", "w[0]", "--train", "a.weight=cols:1-3", "--train", "*.bias"]) == 0
    out = capsys.readouterr()
    assert "a word" not in out.out and "not trained, because the result does not depend on them: idle.bias" in out.err
    program = from_json((home / "build/step/program.json").read_text())
    trained = {t.name for t in program.tensors.values() if t.role.value == "trained"}
    assert trained == {"w[0]", "a.weight.trained", "a.bias", "norm.bias", "head.bias"}
    assert program.weights["a.weight"].index == (1, 2, 3)
    assert main(["factories:image", "--train", "*"]) == 0       # four channels


def test_a_plan_file_and_the_flags_make_the_same_step(home: Path) -> None:
    plan = {"version": 1, "name": "mine", "parameters": {"a.weight": {"cols": [1, 2, 3]}, "a.bias": "all"}}
    (home / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    assert main(["factories:net", "--plan", "plan.yaml", "--output", "one", "--momentum", "0.5"]) == 0
    assert main(["factories:net", "--train", "a.weight=cols:1-3", "--train", "a.bias", "--output", "two", "--momentum",
                 "0.5"]) == 0
    assert (home / "one/program.txt").read_text() == (home / "two/program.txt").read_text()
    one, two = (load_file(home / n / "values.safetensors") for n in ("one", "two"))
    assert all(np.array_equal(one[n], two[n]) for n in one) and one.keys() == two.keys()


def test_over_budget_is_two(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["factories:net", "--budget", "100 b"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("over budget: ") and not (home / "build").exists()


# -- the output folder ------------------------------------------------------------------------------------------
def test_what_is_not_ours_is_never_replaced(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "thesis").mkdir()
    (home / "thesis/a.tex").write_text("x")
    (home / "notes").mkdir()
    (home / "notes/program.txt").write_text("my own notes")
    (home / "file").write_text("x")
    (home / "link").symlink_to("nowhere")
    for name, text in {"thesis": "thesis holds other files (a.tex)", "notes": "notes holds other files (program.txt)",
                       "file": "file is no folder", "file/below": "file is no folder", "link": "link is no folder"}.items():
        assert text in refused(capsys, "factories:net", "--output", name)
    assert (home / "thesis/a.tex").read_text() == "x" and (home / "notes/program.txt").read_text() == "my own notes"
    assert (home / "file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused_early(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "locked").mkdir(mode=0o500)
    assert "cannot be written" in refused(capsys, "factories:net", "--output", "locked/step")


def test_our_own_folder_is_written_again_and_the_code_in_it_stays(home: Path) -> None:
    assert main(["factories:net", "--train", "a.bias", "--output", "deep/step"]) == 0
    before = (home / "deep/step/program.txt").read_text()
    (home / "deep/step/c").mkdir()
    (home / "deep/step/c/vit_train.c").write_text("int x;")
    assert main(["factories:net", "--train", "a.*", "--output", "deep/step"]) == 0
    assert (home / "deep/step/program.txt").read_text() != before
    assert (home / "deep/step/c/vit_train.c").read_text() == "int x;"
    assert [p.name for p in (home / "deep").iterdir()] == ["step"]


def test_nothing_is_left_half_written(home: Path, capsys: pytest.CaptureFixture[str],
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["factories:net", "--train", "a.bias", "--output", "step"]) == 0
    capsys.readouterr()
    before = {p.name: p.read_bytes() for p in (home / "step").iterdir()}
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "values.safetensors":
            raise OSError(28, "No space left on device", str(path))
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    for name in ("step", "fresh"):
        assert "No space left on device" in refused(capsys, "factories:net", "--train", "a.*", "--output", name)
    assert {p.name: p.read_bytes() for p in (home / "step").iterdir()} == before
    assert not (home / "fresh").exists() and not list(home.glob(".*"))


@pytest.mark.parametrize("argv", [["-m", "compilation", "--help"], ["-m", "compilation", "x", "--momentun", "1"],
                                  ["-m", "compilation", "x:y", "--classes", "3"], ["-m", "compilation.place", "--help"]])
def test_cheap_answers_import_nothing_heavy(home: Path, argv: list[str]) -> None:
    root = Path(__file__).resolve().parents[2]
    heavy = {"torch", "tvm", "timm", "pydantic", "ortools", "safetensors"}
    code = f"import runpy, sys; sys.argv = {argv[1:]!r}\ntry: runpy.run_module({argv[1]!r}, run_name='__main__')\n" \
        f"except SystemExit: pass\nprint(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(root)})
    assert done.stdout.strip().splitlines()[-1] == "[]"


# -- python -m compilation.place -----------------------------------------------------------------------------------
GOOD = "id,lower,upper,size\na,0,2,3\n\"b, c\",1,3,4\n"


def placed(capsys: pytest.CaptureFixture[str], *argv: str, code: int) -> str:
    try:
        status = place_main(list(argv))
    except SystemExit as stop:
        status = int(stop.code or 0)
    captured = capsys.readouterr()
    assert status == code, captured.err
    assert "Traceback" not in captured.err
    return captured.err.strip() or captured.out.strip()


INSTANCES = {
    "header": ("name,lower,upper,size\na,0,1,1\n", "the header lacks id"), "empty": ("", "the header lacks id, lower, "
                                                                                         "upper, size"),
    "twice": ("id,id,lower,upper,size\na,a,0,1,1\n", "the header lacks id, or has it twice"),
    "words": ("id,lower,upper,size\na,zero,1,1\n", "line 2: lower, upper and size must be integers"),
    "float": ("id,lower,upper,size\na,0,1,1.5\n", "line 2: lower, upper and size must be integers"),
    "few": ("id,lower,upper,size\na,0,1\n", "line 2: lower, upper and size must be integers"),
    "many": ("id,lower,upper,size\na,0,1,1,1\n", "line 2: it has more values"),
    "order": ("id,lower,upper,size\na,1,1,1\n", "line 2: upper must exceed lower"),
    "negative": ("id,lower,upper,size\na,0,1,-1\n", "size must not be negative"),
    "double": ("id,lower,upper,size\na,0,1,1\na,0,1,1\n", "line 3: an id occurs twice ('a')"),
    "quote": ('id,lower,upper,size\n"a,0,1,1\n', "is not a CSV file"),
}


@pytest.mark.parametrize("name", INSTANCES)
def test_a_bad_instance_is_refused(home: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    text, match = INSTANCES[name]
    (home / "in.csv").write_text(text)
    assert match in placed(capsys, "in.csv", "--capacity", "10", code=1)
    assert not (home / "in.offsets.csv").exists()


def test_place_refuses_files_and_numbers_that_cannot_be(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "in.csv").write_text(GOOD)
    (home / "bytes.csv").write_bytes(b"\xff\xfe\x00id")
    (home / "mine.txt").write_text("dear diary\n")
    (home / "folder").mkdir()
    for argv, code, text in [
            (["none.csv", "--capacity", "9"], 1, "cannot read none.csv: No such file or directory"),
            (["folder", "--capacity", "9"], 1, "cannot read folder: Is a directory"),
            (["bytes.csv", "--capacity", "9"], 1, "bytes.csv is not a CSV file"),
            (["in.csv", "--capacity", "-1"], 2, "'-1' is no capacity"),
        (["in.csv", "--capacity", "1e3"], 2, "'1e3' is no capacity"),
            (["in.csv", "--capacity", "9", "--seconds", "nan"], 2, "'nan' is no time limit"),
            (["in.csv", "--capacity", "9", "--seconds", "0"], 2, "'0' is no time limit"),
            (["in.csv", "--capacity", "9", "--output", "in.csv"], 1, "in.csv is the instance itself"),
            (["in.csv", "--capacity", "9", "--output", "mine.txt"], 1, "mine.txt holds something else than offsets"),
            (["in.csv", "--capacity", "9", "--output", "folder"], 1, "folder is no file"),
            (["in.csv", "--capacity", "9", "--output", "none/out.csv"], 1, "none is no folder"),
            (["in.csv", "--capacity", "6"], 1, "error: ")]:
        assert text in placed(capsys, *argv, code=code)
    assert (home / "mine.txt").read_text() == "dear diary\n" and (home / "in.csv").read_text() == GOOD


def test_place_keeps_ids_as_they_are(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "in.csv").write_text("\ufeff" + GOOD)
    for _ in range(2):                     # offsets of before are replaced
        assert "height 7" in placed(capsys, "in.csv", "--capacity", "9", code=0)
    rows = (home / "in.offsets.csv").read_text().splitlines()
    assert rows[0] == "id,lower,upper,size,offset" and rows[2].startswith('"b, c",1,3,4,')
    assert sorted(p.name for p in home.glob("*.csv")) == ["in.csv", "in.offsets.csv"]
