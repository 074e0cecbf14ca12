"""Work beside the training, and stops between two steps."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from algorithm.training.beside import Beside, GoOn, Stopped
from algorithm.training.stopping import stop_between_steps


def test_the_result_comes_from_another_thread() -> None:
    with Beside(lambda go_on: threading.current_thread()) as work:
        assert work.result() is not threading.current_thread()
        work.check()


def test_an_error_beside_is_raised_where_it_is_asked_for() -> None:
    def broken(go_on: GoOn) -> None:
        raise ValueError("beside")
    with Beside(broken) as work:
        with pytest.raises(ValueError, match="beside"):
            work.result()
        with pytest.raises(ValueError, match="beside"):
            work.check(1, 2.0)


def test_work_that_is_no_longer_wanted_ends_before_the_block_is_left() -> None:
    ended: list[type[BaseException]] = []

    def endless(go_on: GoOn) -> None:
        try:
            while True:
                go_on()
        except BaseException as error:
            ended.append(type(error))
            raise
    with pytest.raises(KeyError), Beside(endless):
        raise KeyError("main")
    assert ended == [Stopped]


@pytest.fixture
def own_handling() -> object:
    """pytest may run where Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("own_handling")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_waits_for_the_end_of_a_step(number: signal.Signals) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), stop_between_steps() as check:
        for step in range(3):
            if step == 1:
                os.kill(os.getpid(), number)
            done.append(step)                       # the step is finished first
            check()
    assert done == [0, 1] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("own_handling")
def test_a_second_stop_does_not_wait() -> None:
    with pytest.raises(KeyboardInterrupt), stop_between_steps():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass
        raise KeyboardInterrupt


def test_another_handling_of_the_stop_is_left_alone() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_between_steps() as check:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            check()
    finally:
        signal.signal(signal.SIGINT, before)
