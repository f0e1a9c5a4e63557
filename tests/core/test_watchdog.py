import threading
import time

from medinit_jax.core.watchdog import Watchdog


def waiting(event):
    event.wait()


def test_a_step_that_takes_too_long_shows_all_stacks_once(capsys):
    free = threading.Event()
    stuck = threading.Thread(target=waiting, args=(free,), name="the stuck one")
    stuck.start()
    now = [0.0]
    with Watchdog(0.02, clock=lambda: now[0]) as watchdog:
        watchdog.beat(7)
        time.sleep(0.1)
        assert capsys.readouterr().err == ""
        now[0] = 1.0
        time.sleep(0.2)
        free.set()
        said = capsys.readouterr().err
        assert said.count("The step after 7 has taken more than") == 1
        assert "Thread the stuck one:" in said and "in waiting" in said
        watchdog.beat(8)
        time.sleep(0.1)
        assert capsys.readouterr().err == ""
        now[0] = 2.0
        time.sleep(0.2)
        assert "The step after 8" in capsys.readouterr().err
    stuck.join()


def test_it_ends_with_the_loop():
    before = threading.active_count()
    with Watchdog(60.0):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
