"""A lock on storage that hosts share, which lapses when its holder is not heard of any more.

It asks for files alone, and no locks of the file system, which some storage of clusters lacks and
some keeps for a host that is gone. To open a file that must not be there yet ("x") succeeds for one
process only, on network file systems, too. The holder touches its file every `BEAT` seconds; one
that has seen it untouched for `LAPSE` seconds, by its own clock, may open the file with the next
number. On the same machine a holder whose process has ended is known at once.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Seconds. A holder is late where its storage or its machine stands still for a while.
BEAT, LAPSE = 10.0, 120.0

# What this process saw of others' locks: {file: (its state, when that was first seen)}.
_seen: dict[Path, tuple[Any, float]] = {}
_own: set[str] = set()


class _Found(NamedTuple):
    """A lock as it lies there: its text, and what changes when it is touched."""

    text: str
    state: tuple[int, int]


class Lease:
    """A lock that this process holds, until `release`.

    Attributes:
        token: Names this holding, as no other.
    """

    def __init__(self, file: Path, number: int, token: str, lost: Callable[[], None]):
        self.token, self._path, self._number, self._lost = token, file, number, lost
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Lets go of it; what it was taken over from goes first, so that none finds that alone."""
        self._left.set()
        self._thread.join()
        if self._is_ours():
            for number in range(self._number + 1):
                _numbered(self._path, number).unlink(missing_ok=True)
        _own.discard(self.token)

    def _keep(self) -> None:
        while not self._left.wait(BEAT):
            if not self._is_ours():
                self._lost()
                return
            try:
                os.utime(_numbered(self._path, self._number))
            except OSError:
                # Storage is away for a while; if it is for long, the next look tells.
                continue

    def _is_ours(self) -> bool:
        """Returns whether nobody took it over; True while storage is away."""
        try:
            found = _look(_numbered(self._path, self._number))
        except OSError:
            return True
        taken = found is None or _facts(found.text).get("token") != self.token
        return not taken and not _numbered(self._path, self._number + 1).exists()


def acquire(path: Path, lost: Callable[[], None] = lambda: None) -> Lease | None:
    """Takes a lock if nobody holds it, or its holder is gone.

    Args:
        path: Its name; the files of the lock lie beside it, as NAME.0, NAME.1, ...
        lost: Called, in a thread, when another process has taken the lock over, since this one was
            not heard of for `LAPSE` seconds.

    Returns:
        The lock; None if another process holds it.
    """
    number, newest = 0, None
    while (found := _look(_numbered(path, number))) is not None:
        number, newest = number + 1, found
    before = _numbered(path, number - 1)
    if newest is not None and not _is_gone(before, newest):
        return None
    token = uuid.uuid4().hex
    _own.add(token)
    if _write(_numbered(path, number), token):
        if newest is None or _look(before) == newest:
            return Lease(path, number, token, lost)
        # It was heard of, or taken over and left again, since we looked: another time.
        _numbered(path, number).unlink(missing_ok=True)
    _own.discard(token)
    return None


def holder(path: Path) -> dict[str, Any]:
    """Returns what the holder of a lock has written: "host", "pid", "token"; {} if there is none.

    Args:
        path: Name of the lock.
    """
    number, newest = 0, None
    while (found := _look(_numbered(path, number))) is not None:
        number, newest = number + 1, found
    return _facts(newest.text) if newest else {}


def is_here(facts: dict[str, Any]) -> bool:
    """Returns whether a holder is a process of this machine."""
    return facts.get("machine") == _machine()


def in_words(facts: dict[str, Any]) -> str:
    """Returns who a holder is, for people."""
    if not {"host", "pid"} <= facts.keys():
        return "another process"
    return f"process {facts['pid']} on {facts['host']}"


def _write(file: Path, token: str) -> bool:
    """Signs a lock; returns False if another process has done so."""
    try:
        with open(file, "x", encoding="utf-8") as place:
            json.dump(_signature(token), place)
            place.flush()
            os.fsync(place.fileno())
    except FileExistsError:
        return False
    except OSError:
        # Storage that is full: an empty lock would stand in everyone's way.
        file.unlink(missing_ok=True)
        raise
    return True


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _signature(token: str) -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "token": token}


@functools.cache
def _machine() -> str:
    """Names what gives out the numbers of processes: containers of one host have their own."""
    try:
        booted = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{booted} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _look(file: Path) -> _Found | None:
    try:
        # Opening, network file systems ask for the file's state anew.
        with open(file, encoding="utf-8") as held:
            state = os.fstat(held.fileno())
            return _Found(held.read(), (state.st_mtime_ns, state.st_size))
    except FileNotFoundError:
        return None


def _facts(text: str) -> dict[str, Any]:
    """Returns what a lock says; {} while it is being written."""
    try:
        facts = json.loads(text)
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _is_gone(file: Path, found: _Found) -> bool:
    """Returns whether the holder of a lock has ended, or was not heard of for `LAPSE` seconds."""
    facts, now = _facts(found.text), time.monotonic()
    if is_here(facts) and _has_ended(facts):
        return True
    seen, since = _seen.get(file, (None, now))
    if seen != found.state:
        _seen[file] = (found.state, now)
        return False
    return now - since >= LAPSE


def _has_ended(facts: dict[str, Any]) -> bool:
    """Returns whether the process of a lock on this machine has ended."""
    pid = facts.get("pid")
    if not isinstance(pid, int):
        return False
    if pid == os.getpid():
        return facts.get("token") not in _own
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Returns whether a process has ended, and the one that started it did not ask how."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    # The name, in brackets, may hold anything.
    return text.rpartition(")")[2].split()[0] in ("Z", "X")
