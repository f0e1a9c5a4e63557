import os
import signal
import time

import pytest

from medinit_jax.core.interrupt import Preempted, exit_code, raise_on_sigterm, stop_on_signal


@pytest.fixture
def handler():
    before = signal.getsignal(signal.SIGTERM)
    raise_on_sigterm()
    yield signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, before)


def test_sigterm_is_raised_where_nothing_takes_it_and_the_next_one_ends(handler):
    with pytest.raises(Preempted) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert exit_code(caught.value) == 75
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_loop_takes_the_first_signal_and_leaves_the_second(handler):
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5) and stop.number == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is handler
        with pytest.raises(Preempted):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    assert exit_code(stop.error()) == 75


def test_ctrl_c_has_a_code_of_its_own():
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(5)
    assert exit_code(stop.error()) == 130


def test_stopped_for_another_process_is_as_by_sigterm():
    with stop_on_signal() as stop:
        pass
    assert not stop.is_set() and exit_code(stop.error()) == 75
