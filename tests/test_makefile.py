"""The Makefile: what it runs, in which environment, and what it leaves alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder whose name has spaces, with an environment that is set up."""
    folder = tmp_path / "my project, second try"
    folder.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt", "Makefile"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/pyvenv.cfg").touch()
    fake = folder / ".venv/bin/python"          # a Python that can import what the environment has
    fake.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    fake.chmod(0o755)
    (folder / ".venv/.installed").touch()
    return folder


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "BUDGET", "PYTHON", "ARGS", "VENV")     # of a make that runs these tests
    return subprocess.run(["make", *arguments], cwd=folder, capture_output=True, text=True,
                          env={k: v for k, v in os.environ.items() if k not in outer})


def test_an_environment_that_is_set_up_is_used_as_it_is(project: Path) -> None:
    done = make(project, "-n", "train", "BUDGET=1.5 mb", 'ARGS=--name "my run"')
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '".venv/bin/python" run_vit_training.py --memory_budget "1.5 mb" --name "my run"'


def test_arguments_reach_the_command_in_a_path_with_spaces(project: Path) -> None:
    (project / "run_vit_training.py").write_text("import sys; print(sys.argv[1:])")
    done = make(project, "-s", "train", "ARGS=--seed 1 'train.lr=[1, 2]'")
    assert done.stdout.strip() == "['--memory_budget', '2mb', '--seed', '1', 'train.lr=[1, 2]']"


def test_tests_come_after_the_checks(project: Path) -> None:
    lines = make(project, "-n", "test", "ARGS=-k folder").stdout.splitlines()
    assert [line.split(" -m ")[1] for line in lines] == ["ruff check .", "mypy", "pytest -k folder"]


def test_an_environment_that_no_longer_runs_is_made_again(project: Path) -> None:
    (project / ".venv/bin/python").unlink()
    (project / ".venv/bin/python").symlink_to("/no/such/python")
    assert "-m venv --clear" in make(project, "-n", "setup").stdout


def test_a_folder_in_the_place_of_the_environment_is_left_alone(project: Path) -> None:
    (project / "mine").mkdir()
    (project / "mine/a.txt").write_text("x")
    for target in ("setup", "train"):
        done = make(project, target, "VENV=mine")
        assert done.returncode != 0 and "mine exists and is no virtual environment" in done.stderr
    assert make(project, "clean", "VENV=mine").returncode == 0
    assert (project / "mine/a.txt").read_text() == "x"


def test_clean_keeps_runs_and_compiled_steps(project: Path) -> None:
    for name in ("runs/a/report.html", "build/step/program.txt", "build/lib/a.py", "x.egg-info/PKG-INFO"):
        (project / name).parent.mkdir(parents=True)
        (project / name).touch()
    assert make(project, "clean").returncode == 0
    assert (project / "runs/a/report.html").exists() and (project / "build/step/program.txt").exists()
    assert not any((project / name).exists() for name in (".venv", "build/lib", "x.egg-info"))
