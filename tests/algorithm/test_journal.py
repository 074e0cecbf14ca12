"""What the job prints is one printable line of plain text; stages are timed in every thread."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from algorithm.journal import Journal, plain_line, refuse


def journal() -> tuple[Journal, io.StringIO]:
    out = io.StringIO()
    return Journal(Console(file=out, width=200)), out


@pytest.mark.parametrize(("text", "line"), [
    ("a b", "a b"), ("a\nb\n\n  c", "a; b; c"), ("[red]a[/]", "[red]a[/]"), ("\x1b[31ma", "\\x1b[31ma"),
    ("tab\there", "tab here"), ("\udcff", "\\udcff"), ("\u00e9", "\u00e9"), ("\u202e", "\\u202e"), (ValueError("x"), "x")])
def test_text_of_any_origin_becomes_one_printable_line(text: object, line: str) -> None:
    assert plain_line(text) == line and line.isprintable()


def test_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    log, out = journal()
    log.say("[/red] and [bold]name[/bold]")
    assert "[/red] and [bold]name[/bold]" in out.getvalue()
    refuse("[/red] \x1b[31m", "over budget")
    assert capsys.readouterr().err == "over budget: [/red] \\x1b[31m\n"


def test_stages_of_other_threads_are_marked() -> None:
    log, out = journal()

    def beside() -> None:
        with log.stage("trace"):
            pass
    with pytest.raises(KeyError), log.stage("train", "training"):
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
        raise KeyError
    assert list(log.seconds) == ["trace", "train"]
    log.console.print(log.table())
    assert "training" in out.getvalue() and "trace (beside)" in out.getvalue() and "train (beside)" not in out.getvalue()


@pytest.mark.parametrize("gone", ["full", "closed"])
def test_a_table_that_nobody_takes_is_said_and_ends_nothing(gone: str) -> None:
    if gone == "full" and not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    if gone == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, out = os.pipe()
        os.close(reader)
    code = ("from rich.table import Table; from algorithm.journal import Journal\n"
            "log, t = Journal(), Table(); t.add_row('a')\n"
            "log.show(t); log.say('went on')")
    try:
        done = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(out)
    first, second = done.stderr.splitlines()
    assert done.returncode == 0 and "the table cannot be printed (" in first and second.endswith("went on")
