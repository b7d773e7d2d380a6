"""Signals during training: the first ones are remembered, and only an impatient Ctrl-C ends it at once."""

import os
import signal

import pytest

from counterpoint.training.recording import Interrupt, sigterm_as_ctrl_c


def send(number):
    os.kill(os.getpid(), number)


def test_the_first_signal_is_remembered_and_told_once():
    told = []
    with Interrupt(lambda: told.append(1)) as interrupt:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        interrupt.request()
        assert interrupt.requested
    assert told == [1]


def test_ctrl_c_followed_by_a_launchers_sigterm_is_one_request():
    with Interrupt() as interrupt:
        send(signal.SIGINT)
        send(signal.SIGTERM)
        assert interrupt.requested


def test_a_second_ctrl_c_ends_at_once():
    with Interrupt():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_sigterm_outside_a_step_is_ctrl_c_and_a_second_one_is_not_heard():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_as_ctrl_c():
        with Interrupt() as interrupt:
            send(signal.SIGTERM)
            assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
        send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
