"""How far a long piece of work is: a bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich import progress
from rich.console import Console


class Progress:
    """Shows the count, the rate and the time left of work with a known number of steps.

    Use as a context manager:

        with Progress("train", total=1000, console=console) as bar:
            bar.update(step, loss="1.23")
    """

    def __init__(
        self,
        title: str,
        total: int,
        console: Console,
        *,
        start: int = 0,
        unit: str = "steps",
        every: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Prepares the display.

        Args:
            title: what is being done.
            total: the count at the end.
            console: where to draw; a bar if it is a terminal, otherwise lines.
            start: the count that is done already, as after a resume.
            unit: what is counted.
            every: seconds between plain lines.
            clock: the time in seconds.
        """
        self._title, self._total, self._unit = title, total, unit
        self._console, self._every, self._clock = console, every, clock
        self._done = self._marked = start
        self._marked_at = clock()
        self._fields = ""
        self._bar = self._make_bar() if console.is_terminal else None
        if self._bar:
            self._bar.add_task(title, total=total, completed=start, rate="", fields="")

    def __enter__(self) -> Self:
        """Starts the display."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leaves the last state on the display."""
        if self._bar:
            self._bar.stop()
        elif self._done != self._marked:
            self._print_line()

    def update(self, done: int, **fields: str) -> None:
        """Moves the count.

        Args:
            done: how many are done in all.
            **fields: short texts to show beside it; kept until others are given.
        """
        self._done = done
        if fields:
            self._fields = "  ".join(f"{name} {text}" for name, text in fields.items())
        if self._bar:
            task = self._bar.tasks[0]
            rate = f"{task.speed:.3g} {self._unit}/s" if task.speed else ""
            self._bar.update(task.id, completed=done, rate=rate, fields=self._fields)
        elif self._clock() - self._marked_at >= self._every:
            self._print_line()

    def _make_bar(self) -> progress.Progress:
        return progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[rate]}"),
            progress.TimeRemainingColumn(elapsed_when_finished=True),
            progress.TextColumn("{task.fields[fields]}"),
            console=self._console,
            speed_estimate_period=60.0,
        )

    def _print_line(self) -> None:
        now = self._clock()
        seconds = max(now - self._marked_at, 1e-9)
        rate = (self._done - self._marked) / seconds
        self._marked, self._marked_at = self._done, now
        left = f"{_clock_time((self._total - self._done) / rate)} left" if rate > 0 else "stalled"
        share = 100 * self._done // max(self._total, 1)
        text = (
            f"{self._title} {self._done}/{self._total} {self._unit} ({share} %), "
            f"{rate:.3g}/s, {left}  {self._fields}"
        )
        self._console.print(text.rstrip(), markup=False, highlight=False, soft_wrap=True)


def _clock_time(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"
