"""Stopping by a signal: what is saved, which exit code follows, and when the process ends at once.

SIGINT is a person, who goes on when they like: exit code 130. SIGTERM is a scheduler that takes the
machine away: exit code 75, upon which the same command may be put into the queue again.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STOPPED = 130
# EX_TEMPFAIL of sysexits.h: it did not fail, try it again.
REQUEUE = 75


# What is said at the end.
SENTENCE = "Stopped; the same command goes on from the last checkpoint."


class Preempted(KeyboardInterrupt):
    """SIGTERM came, here or to another process of the run."""


class Stop(threading.Event):
    """Is set by the first signal.

    Attributes:
        number: The signal; None if none came here.
    """

    def __init__(self):
        super().__init__()
        self.number: int | None = None

    def error(self) -> KeyboardInterrupt:
        """Returns what to raise once all is saved."""
        return KeyboardInterrupt() if self.number == signal.SIGINT else Preempted()


_entered: list[Stop] = []


def exit_code(error: KeyboardInterrupt) -> int:
    """Returns the exit code of a process that this error ends."""
    return REQUEUE if isinstance(error, Preempted) else STOPPED


def raise_on_sigterm() -> None:
    """Makes SIGTERM raise `Preempted` wherever the main thread is; a second one ends the process.

    Where there is something to save first, `stop_on_signal` takes the signal instead.
    """

    def handle(number: int, frame: Any) -> None:
        del frame
        signal.signal(number, signal.SIG_DFL)
        raise Preempted

    signal.signal(signal.SIGTERM, handle)


@contextmanager
def ctrl_c_kept() -> Iterator[None]:
    """Keeps ctrl-C from processes that are started meanwhile, which this one ends itself.

    A key press reaches all processes of a terminal, and each would show where it was, even while it
    imports.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Turns the first SIGINT or SIGTERM into an event; the second acts as it did before.

    Inside another one the event is that one's, so that a signal in the last step of a piece of work
    stops the whole.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    if _entered:
        yield _entered[-1]
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def restore_handlers() -> None:
        for kind, handler in before.items():
            signal.signal(kind, handler)

    def handle(number: int, frame: Any) -> None:
        del frame
        stop.number = number
        stop.set()
        restore_handlers()

    for kind in kinds:
        signal.signal(kind, handle)
    _entered.append(stop)
    try:
        yield stop
    finally:
        _entered.remove(stop)
        restore_handlers()
