"""Toy C folders, built once a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from compilation.program import Program
from runtime.codegen import Generated
from runtime.simulator import Simulator
from tests.runtime import toy


@pytest.fixture(scope="session")
def write_toy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Program], Generated]:
    """program -> its generated C folder, with the toy kernels."""
    room = tmp_path_factory.mktemp("toy")

    def write(program: Program, parameters: dict[str, np.ndarray] | None = None) -> Generated:
        folder = room / f"c{len(list(room.iterdir()))}"
        return toy.write(program, folder, room / "kernels", parameters)

    return write


@pytest.fixture(scope="session")
def toy_folder(write_toy: Callable[[Program], Generated]) -> Path:
    return write_toy(toy.program("cols", momentum=0.5)).folder


@pytest.fixture(scope="session")
def toy_simulator(toy_folder: Path) -> Iterator[Simulator]:
    with Simulator(toy_folder, toy.program("cols", momentum=0.5)) as simulator:
        yield simulator
