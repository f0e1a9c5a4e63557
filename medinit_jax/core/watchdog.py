"""A thread that says where a run stands still."""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Watchdog:
    """Writes the stacks of all threads to stderr, once for each step that takes too long.

    It ends nothing: a step may be slow for good reason, such as a long compilation. Use as a
    context manager, and call `beat` after each step.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        """Prepares the thread.

        Args:
            seconds: How long a step may take.
            clock: The time in seconds.
        """
        self._seconds, self._clock = seconds, clock
        self._ended = threading.Event()
        self._beat = (clock(), 0)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        """Starts the thread."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the thread."""
        self._ended.set()
        self._thread.join()

    def beat(self, step: int) -> None:
        """Tells that so many steps are done."""
        self._beat = (self._clock(), step)

    def _watch(self) -> None:
        told = None
        while not self._ended.wait(min(self._seconds / 4, 5.0)):
            beat = self._beat
            if beat is not told and self._clock() - beat[0] > self._seconds:
                told = beat
                print(
                    f"The step after {beat[1]} has taken more than {self._seconds:.0f} s; the run "
                    f"goes on, and this is where its threads are:\n{stacks()}",
                    file=sys.stderr,
                    flush=True,
                )


def stacks() -> str:
    """Returns the stacks of all Python threads but the one that asks, most recent call last."""
    frames = sys._current_frames()
    return "\n".join(
        f"Thread {thread.name}:\n{''.join(traceback.format_stack(frames[thread.ident]))}"
        for thread in threading.enumerate()
        if thread.ident in frames and thread is not threading.current_thread()
    )
