"""Locks of files: one process holds one, and one that is gone holds none."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from medinit_jax.core import lease

HOLD = """
import sys, threading
from pathlib import Path
from medinit_jax.core import lease
lease.BEAT = 0.1
lost = threading.Event()
held = lease.acquire(Path(sys.argv[1]), lost.set)
print("held" if held else "not held", flush=True)
lost.wait(120)
print("lost", flush=True)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "job.lock"


@pytest.fixture
def other(path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def files(path):
    return sorted(file.name for file in path.parent.iterdir())


def taken_by(path, count):
    """Lets as many threads as processes would try at the same moment; returns what they got."""
    begin, found = threading.Barrier(count), []

    def take():
        begin.wait()
        found.append(lease.acquire(path))

    threads = [threading.Thread(target=take) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [one for one in found if one is not None]


def test_one_of_many_gets_it(path):
    for _ in range(20):
        (held,) = taken_by(path, 8)
        assert lease.acquire(path) is None
        facts = lease.holder(path)
        assert facts["pid"] == os.getpid() and facts["token"] == held.token
        assert lease.is_here(facts) and str(os.getpid()) in lease.in_words(facts)
        held.release()
        assert files(path) == [] and lease.holder(path) == {}


def test_a_process_that_was_killed_holds_nothing(path, other):
    assert lease.acquire(path) is None
    assert lease.holder(path)["pid"] == other.pid
    other.kill()
    other.wait()
    held = lease.acquire(path)
    assert held is not None and files(path) == ["job.lock.0", "job.lock.1"]
    held.release()
    assert files(path) == []


def test_a_process_that_ended_and_was_not_waited_for_holds_nothing(path, other):
    other.kill()
    until = time.monotonic() + 60
    while (held := lease.acquire(path)) is None:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert other.returncode is None
    held.release()


def test_one_of_many_takes_over(path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for number in range(20):
        held = lease.acquire(path)
        dead = lease.holder(path) | {"pid": ended.pid, "token": str(number)}
        held.release()
        (path.parent / "job.lock.0").write_text(json.dumps(dead))
        (held,) = taken_by(path, 8)
        assert files(path) == ["job.lock.0", "job.lock.1"] and lease.acquire(path) is None
        held.release()
        assert files(path) == []


def test_a_holder_elsewhere_is_given_up_when_it_is_not_heard_of(path, monkeypatch):
    monkeypatch.setattr(lease, "LAPSE", 0.4)
    file = path.parent / "job.lock.0"
    # Half a line, as of a host that ended while it signed.
    file.write_text('{"host": "far')
    for _ in range(4):
        assert lease.acquire(path) is None
        time.sleep(0.2)
        os.utime(file)
    assert lease.acquire(path) is None
    time.sleep(0.5)
    held = lease.acquire(path)
    assert held is not None
    held.release()


def test_a_holder_elsewhere_that_is_heard_of_keeps_it(path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    with monkeypatch.context() as there:
        there.setattr(lease, "_machine", lambda: "elsewhere")
        held = lease.acquire(path)
    monkeypatch.setattr(lease, "LAPSE", 5.0)
    until = time.monotonic() + 6.0
    while time.monotonic() < until:
        assert lease.acquire(path) is None
        time.sleep(0.2)
    held.release()
    assert lease.acquire(path) is not None


def test_a_holder_that_stood_still_learns_that_it_lost(path, other, monkeypatch):
    monkeypatch.setattr(lease, "LAPSE", 1.0)
    other.send_signal(signal.SIGSTOP)
    until = time.monotonic() + 60
    while (held := lease.acquire(path)) is None:
        assert time.monotonic() < until
        time.sleep(0.1)
    other.send_signal(signal.SIGCONT)
    assert other.stdout.readline() == "lost\n"
    held.release()
    assert files(path) == []


def test_a_full_disk_leaves_no_lock(path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            lease.acquire(path)
    assert files(path) == [] and lease.acquire(path) is not None
