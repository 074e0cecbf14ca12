"""The laws that are about structure: who may import whom, and the one door to TVM."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {"algorithm": {"compilation", "runtime", "tvm"}, "compilation": {"runtime"}, "runtime": {"tvm"}}


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, at any depth of the code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_import_only_to_their_left(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    assert {str(f.relative_to(ROOT)): bad for f in files if (bad := imported(f) & FORBIDDEN[package])} == {}


def test_tvm_stays_behind_one_door() -> None:
    users = {f.relative_to(ROOT).parts[:2] for f in (ROOT / "compilation").rglob("*.py") if "tvm" in imported(f)}
    assert users == {("compilation", "tvm_adapter")}


def test_kernels_bring_everything_themselves() -> None:
    """No header of a C library except the freestanding ones; math.h only where a compiler lacks fmaf and sqrtf built in."""
    includes = {(f.name, line.split("<")[1].split(">")[0]) for f in (ROOT / "runtime/kernels").glob("*.[ch]")
                for line in f.read_text().splitlines() if line.strip().startswith("#include <")}
    assert {i for i in includes if i[1] not in ("stdint.h", "stddef.h")} == {("vt_math.h", "math.h")}


def test_elements_are_named_and_sized_in_one_place() -> None:
    """No literal of an element type and no bytes of a number outside `compilation/types.py`."""
    literal = re.compile(r'"(f32|i32|u16|u8|float32|int32_t|uint16_t|uint8_t)"|\b4 \* ?\(|return 4 \*')
    found = {f"{f.relative_to(ROOT)}: {line.strip()}" for package in ("compilation", "runtime/codegen", "runtime/simulator")
             for f in (ROOT / package).rglob("*.py") if f.name != "types.py"
             for line in f.read_text().splitlines() if literal.search(line)}
    assert found == set()
