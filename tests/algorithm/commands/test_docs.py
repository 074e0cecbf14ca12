"""The commands of docs/training.md exist: every flag, every key, every file of configs that they name."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from algorithm.__main__ import COMMANDS
from algorithm.commands.ablate import plan_of
from algorithm.commands.resolving import complete, tree_of
from algorithm.errors import DataError

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = re.compile(r"^ {4}((?:torchrun|python) .*-m algorithm (?:train|validate|infer|analyze|ablate) .*)$")


def commands(text: str) -> list[list[str]]:
    """The command lines of a page, from the name of the command on."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [shlex.split(match[1]) for line in lines if (match := PROGRAM.match(line))]
    return [words[words.index("algorithm") + 1:] for words in found]


PAGES = {page: commands((ROOT / page).read_text()) for page in ("docs/training.md", "README.md")}


def test_the_pages_show_commands() -> None:
    assert {words[0] for words in PAGES["docs/training.md"]} == set(COMMANDS)
    assert len(PAGES["docs/training.md"]) >= 20 and PAGES["README.md"]


@pytest.mark.parametrize("words", [w for page in PAGES.values() for w in page], ids=" ".join)
def test_a_shown_command_is_one(words: list[str]) -> None:
    name, *rest = words
    options = importlib.import_module(f"algorithm.commands.{name}").parser().read(rest)
    tree = tree_of(options.config, vars(options), options.overrides)
    try:
        complete({**tree, "model": {"img_size": 32, **tree.get("model", {})}})
    except DataError as error:
        assert "FOLDER" in str(error)
    for plan in getattr(options, "plans", []):
        plan_of(plan)
