"""Options and helpers shared by all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import algorithm.models.torchvision_shim  # noqa: F401  (before anything imports timm)
from tests.figures import Figures

GOLDEN = Path(__file__).resolve().parent / "tests/golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/ from the present output")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden(name, text): compares with tests/golden/<name>, or rewrites it under --update-golden."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"{path.name} is missing: run pytest --update-golden and read it before committing"
        assert text == path.read_text(), f"{name} changed: read the difference, then pytest --update-golden"

    return check


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """The golden figures of tests/golden/, refreshed under --update-golden."""
    return Figures(GOLDEN, request.config.getoption("--update-golden"))
