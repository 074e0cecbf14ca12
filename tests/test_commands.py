"""Every command answers `--help` and a mistyped flag before it loads anything heavy, and takes no flag for another."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("algorithm", "compilation", "runtime", "benchmarks")
HEAVY = {"torch", "torchvision", "tvm", "timm", "wandb", "numpy", "scipy", "sklearn", "ortools", "onnx", "PIL",
         "safetensors", "jinja2", "huggingface_hub"}
PROBE = """
import json, runpy, sys
target, sys.argv[0] = sys.argv.pop(1), "command"
try:
    runpy.run_path(target, run_name="__main__") if target.endswith(".py") else \\
        runpy.run_module(target, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("\\n" + json.dumps([end.code, sorted({m.partition(".")[0] for m in sys.modules})]))
"""


def commands() -> list[str]:
    """The main job, and every module that reads a command line."""
    found = ["run_vit_training.py"]
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text()
            if "ArgumentParser(" in text and '__name__ == "__main__"' in text:
                found.append(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    return found


def answer(command: str, *arguments: str) -> tuple[int, set[str], str]:
    """(exit status, top-level modules imported, the output) of a command."""
    done = subprocess.run([sys.executable, "-c", PROBE, command, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *output, last = done.stdout.splitlines()
    status, modules = json.loads(last)
    return int(status or 0), set(modules), "\n".join(output) + done.stderr


def test_the_commands_are_found() -> None:
    assert {"run_vit_training.py", "compilation", "compilation.place", "runtime", "benchmarks.results"} <= set(commands())


@pytest.mark.parametrize("command", commands())
def test_help_comes_before_anything_heavy(command: str) -> None:
    status, modules, text = answer(command, "--help")
    assert status == 0 and "usage:" in text
    assert modules & HEAVY == set()


@pytest.mark.parametrize("command", commands())
def test_a_mistyped_flag_is_refused_before_anything_heavy(command: str) -> None:
    status, modules, text = answer(command, "--no-such-flag", "x")
    assert status == 2 and text.strip()
    assert modules & HEAVY == set()


def test_the_integration_test_is_a_command() -> None:
    """`python test_vit_integration.py` runs the tests in it, and its exit status is theirs (5: none was chosen)."""
    done = subprocess.run([sys.executable, "test_vit_integration.py", "-k", "no_such_test"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 5 and "deselected" in done.stdout, done.stdout + done.stderr


def test_no_beginning_of_a_flag_is_taken_for_it() -> None:
    """argparse takes `--out` for `--output` unless told otherwise."""
    files = [ROOT / "run_vit_training.py", *(p for package in PACKAGES for p in (ROOT / package).rglob("*.py"))]
    calls = [(p.name, node) for p in files for node in ast.walk(ast.parse(p.read_text()))
             if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ArgumentParser")]
    assert len(calls) >= 5
    assert [name for name, call in calls
            if {k.arg: ast.unparse(k.value) for k in call.keywords}.get("allow_abbrev") != "False"] == []


@pytest.mark.parametrize("arguments", [
    ["train.foo=1"], ["train.lr"], ["--lr", "fast"], ["--config", "missing.yaml"], ["--memory_budget", "2 elephants"],
    ["--memory_budget", "1kb"], ["--name", "../a"], ["--name", ""], ["--output", ""], ["compile.compiler=no-such-compiler"],
    ["train.lr=[red]"], ["--model", "\x1b[31m", "--name", "a\nb"]])
def test_the_main_job_refuses_in_one_line_before_anything_heavy(arguments: list[str], tmp_path: Path) -> None:
    status, modules, text = answer("run_vit_training.py", *([] if "--output" in arguments else ["--output", str(tmp_path)]),
                                   *arguments)
    lines = text.strip().splitlines()
    assert status == (2 if "1kb" in arguments else 1)
    assert len(lines) == 1 and lines[0].isprintable(), text
    assert modules & {"torch", "tvm", "timm", "wandb", "sklearn", "ortools", "onnx"} == set()
    assert list(tmp_path.iterdir()) == []
