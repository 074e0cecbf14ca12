"""The line that a training shows: what it says, its speed, and where there is no terminal."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from algorithm.commands.console import PLAIN_LINES, TrainingConsole, clock_time


class Clock:
    """Seconds that pass by word."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def made(screen: Console, total: int, done: int, images: int, clock: Any = time.perf_counter) -> TrainingConsole:
    console = TrainingConsole(screen, print, clock)
    console.begin(total, done, images)
    return console


def test_the_line_says_step_speed_eta_rate_losses_and_accuracy() -> None:
    clock = Clock()
    console = made(Console(file=io.StringIO()), 100, 10, 64, clock)
    for done in range(11, 31):
        clock.now += 0.5
        console.update(done, 3e-4, loss=1.25)
    console.update(30, 3e-4, accuracy=0.452)
    assert console.line(30, 3e-4) == ("step 30/100 (30 %)  128 images/s a device  ETA 0:00:35  lr 3.0e-04  loss 1.25  "
                                      "accuracy 45.2 %")


def test_time_of_an_evaluation_is_no_training_time() -> None:
    clock = Clock()
    console = made(Console(file=io.StringIO()), 100, 0, 10, clock)
    for done in range(1, 5):
        clock.now += 1
        console.update(done, 0.1)
    clock.now += 1000
    console.pause()
    console.update(5, 0.1)
    assert "images/s" not in console.line(5, 0.1)
    clock.now += 1
    console.update(6, 0.1)
    assert "10 images/s a device" in console.line(6, 0.1)


def test_without_a_terminal_there_are_a_few_plain_lines() -> None:
    out = io.StringIO()
    with made(Console(file=out, width=40), 1000, 0, 1) as console:
        for done in range(1, 1001):
            console.update(done, 0.1, loss=1.0)
    lines = out.getvalue().splitlines()
    assert len(lines) == PLAIN_LINES and lines[-1].startswith("step 1000/1000 (100 %)")
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_there_is_one_line_that_lives() -> None:
    out = io.StringIO()
    screen = Console(file=out, force_terminal=True, width=200)
    with made(screen, 10, 0, 1) as console:
        for done in range(1, 11):
            console.update(done, 0.1, loss=1.0)
        screen.print("said meanwhile")
    assert "step 10/10" in out.getvalue() and "said meanwhile" in out.getvalue() and "\x1b[" in out.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (61.4, "0:01:01"), (3599.6, "1:00:00"),
                                               (90_000, "1 d 1:00:00")])
def test_times_read_as_clocks(seconds: float, text: str) -> None:
    assert clock_time(seconds) == text
