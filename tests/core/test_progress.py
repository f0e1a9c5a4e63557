import io

import pytest
from rich.console import Console

from medinit_jax.core.progress import Progress


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_plain_lines_with_rate_and_time_left_where_there_is_no_terminal():
    clock, out = Clock(), io.StringIO()
    console = Console(file=out, width=40)
    with Progress("train", 1000, console, start=100, every=10, clock=clock) as bar:
        for step in range(101, 151):
            clock.now += 0.5
            bar.update(step, loss=f"{step}")
        clock.now += 1.0
        bar.update(151)
    lines = out.getvalue().splitlines()
    # 2 steps a second from step 100; a line every 10 s, and one for what is left at the end.
    assert lines == [
        "train 120/1000 steps (12 %), 2/s, 0:07:20 left  loss 120",
        "train 140/1000 steps (14 %), 2/s, 0:07:10 left  loss 140",
        "train 151/1000 steps (15 %), 1.83/s, 0:07:43 left  loss 150",
    ]


def test_a_bar_on_a_terminal():
    out = io.StringIO()
    console = Console(file=out, width=120, force_terminal=True)
    with Progress("train", 4, console) as bar:
        for step in range(1, 5):
            bar.update(step, loss="0.5")
    text = out.getvalue()
    assert "train" in text and "4/4" in text and "loss 0.5" in text and "━" in text


def test_nothing_is_printed_when_nothing_happened():
    out = io.StringIO()
    with Progress("train", 4, Console(file=out), start=4):
        pass
    assert out.getvalue() == ""


def test_an_error_inside_goes_on():
    with pytest.raises(ZeroDivisionError), Progress("x", 2, Console(file=io.StringIO())):
        raise ZeroDivisionError
