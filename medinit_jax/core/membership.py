"""How the processes of a run find each other, and how they end together.

A process that fails says so. The others look every second, in a thread, since they may be waiting
for it in the middle of a step, where nothing else reaches them. One that vanishes says nothing: JAX
misses its heartbeat and aborts the others, whose last words another process has to say.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import jax
from jax._src import distributed

from medinit_jax.core import interrupt, storage
from medinit_jax.core.cluster import alone, first
from medinit_jax.core.errors import UsageError

AUTO = "auto"
_FAILED = "medinit/failed"
# Seconds between two looks at whether another process has failed, and that the first one gives the
# others to look before it ends.
_LOOK, _FAREWELL = 1.0, 5.0
# Seconds in which processes that were stopped by the same signal meet.
_MEET = 30
# Least seconds for a heartbeat.
_SHORTEST = 10


class Cluster(NamedTuple):
    """What the command line says of the processes of a run.

    Attributes:
        how: "" takes the other values; "auto" asks the TPU VM or SLURM for them.
        coordinator: HOST:PORT of the first process; "" is a run of one process.
        processes: How many there are.
        process: Which of them this one is, from 0.
        timeout: Seconds to wait for all of them at the start.
        heartbeat: Seconds without a sign of life after which one is taken for dead.
    """

    how: str = ""
    coordinator: str = ""
    processes: int | None = None
    process: int | None = None
    timeout: int = 300
    heartbeat: int = 60


@contextmanager
def joined(cluster: Cluster, apart: bool = False) -> Iterator[None]:
    """Joins the processes of a run, and leaves them at the end.

    Of several processes, one that fails tells the others, shows why, and ends here with exit code
    2, or that of the signal that stopped it; so do the others.

    Args:
        cluster: What the command line says.
        apart: Whether the processes share nothing but files, so that each is a run of its own here,
            and goes on when others end.

    Raises:
        UsageError: What it says does not fit together.
    """
    _check(cluster)
    several = bool(cluster.how or cluster.coordinator)
    if several and apart:
        print(
            "The processes of this route do not meet: each takes what no other one has.",
            file=sys.stderr,
        )
    if apart or not several:
        yield
        return
    _initialize(cluster)
    if alone():
        yield
        return
    left, words = threading.Event(), _LastWords(distributed.global_state.process_id)
    threading.Thread(target=_watch, args=(left, words), daemon=True).start()
    try:
        _check_count()
        yield
    except KeyboardInterrupt as error:
        try:
            _client().wait_at_barrier("medinit/stopped", 1000 * _MEET)
        except RuntimeError:
            # Only this one was stopped.
            left.set()
            _fail(error, words)
        left.set()
        jax.distributed.shutdown()
        words.withdraw()
        raise
    except BaseException as error:
        left.set()
        _fail(error, words)
    left.set()
    jax.distributed.shutdown()
    words.withdraw()


def _check(cluster: Cluster) -> None:
    given = [cluster.processes is not None, cluster.process is not None, bool(cluster.coordinator)]
    if cluster.how not in ("", AUTO):
        raise UsageError(f"--cluster={cluster.how} is unknown; write --cluster=auto, or leave it.")
    if cluster.how and any(given):
        raise UsageError(
            "--cluster=auto finds out what --coordinator, --processes and --process say; leave "
            "them out, or leave out --cluster."
        )
    if any(given) and not all(given):
        raise UsageError(
            "--coordinator=HOST:PORT, --processes=N and --process=I belong together; give all "
            "three, or --cluster=auto on a TPU VM or under SLURM."
        )
    if cluster.timeout < 1:
        raise UsageError(f"--cluster_timeout={cluster.timeout} are no seconds; give at least 1.")
    if cluster.heartbeat < _SHORTEST:
        raise UsageError(
            f"--cluster_heartbeat={cluster.heartbeat} is too short for a busy host; give at least "
            f"{_SHORTEST} seconds."
        )
    if cluster.processes is None or cluster.process is None:
        return
    if not 0 <= cluster.process < cluster.processes:
        raise UsageError(
            f"--process={cluster.process} is none of --processes={cluster.processes}; count them "
            f"from 0 to {max(cluster.processes - 1, 0)}."
        )
    port = re.fullmatch(r"\S+:(\d+)", cluster.coordinator)
    if not port or not 0 < int(port[1]) < 1 << 16:
        raise UsageError(
            f"--coordinator={cluster.coordinator} is no HOST:PORT; name the host of process 0 and "
            "a port that is free there."
        )


def _initialize(cluster: Cluster) -> None:
    # Its handler of SIGTERM would take the signal from the loop, which ends the step and saves.
    jax.config.update("jax_enable_preemption_service", False)
    # Collectives of several steps at once wait for each other where devices share cores.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    named: dict[str, Any] = {}
    if not cluster.how:
        _check_port(cluster)
        named = {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.processes,
            "process_id": cluster.process,
            # Nothing is guessed where all is said.
            "cluster_detection_method": "deactivate",
        }
    met = threading.Event()
    threading.Thread(target=_watch_start, args=(cluster, met), daemon=True).start()
    try:
        jax.distributed.initialize(
            **named,
            initialization_timeout=2 * cluster.timeout + 60,
            heartbeat_timeout_seconds=cluster.heartbeat,
        )
    except (ValueError, RuntimeError) as error:
        raise UsageError(_not_met(cluster, str(error).strip().splitlines()[0])) from error
    finally:
        met.set()


def _watch_start(cluster: Cluster, met: threading.Event) -> None:
    """Ends the process with a sentence if the processes do not meet; JAX would abort it."""
    if not met.wait(cluster.timeout):
        print(_not_met(cluster, f"waited {cluster.timeout} s"), file=sys.stderr, flush=True)
        os._exit(2)


def _not_met(cluster: Cluster, reason: str) -> str:
    if cluster.how:
        return (
            f"--cluster=auto did not find the processes of a run ({reason}); use it on a TPU VM or "
            "under SLURM, or give --coordinator, --processes and --process."
        )
    return (
        f"Process {cluster.process} did not meet all {cluster.processes} processes at "
        f"{cluster.coordinator} ({reason}); start every --process from 0 to "
        f"{(cluster.processes or 1) - 1} once with this --coordinator, the host of process 0, and "
        "see that its port can be reached, or raise --cluster_timeout."
    )


def _check_port(cluster: Cluster) -> None:
    """Raises UsageError on the first process if the port is taken, where JAX would abort."""
    if cluster.process != 0:
        return
    port = int(cluster.coordinator.rpartition(":")[2])
    try:
        with socket.socket(socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            own.bind(("", port))
    except OSError as error:
        raise UsageError(
            f"Port {port} of --coordinator={cluster.coordinator} cannot be opened "
            f"({error.strerror}); give another one, the same to all processes."
        ) from error


def _check_count() -> None:
    """Raises UsageError where a process counts others than the first one does."""
    count = str(distributed.global_state.num_processes)
    if first():
        _client().key_value_set("medinit/processes", count)
        return
    told = _client().blocking_key_value_get("medinit/processes", 1000 * _MEET)
    if told != count:
        raise UsageError(
            f"Process 0 was started with --processes={told}, process "
            f"{distributed.global_state.process_id} with {count}; start all with the same number."
        )


class _LastWords:
    """Says a sentence when this process is aborted or killed, where it cannot do so itself.

    A shell waits for a line of this process, and speaks if the pipe ends without it.
    """

    def __init__(self, process: int):
        sentence = (
            f"Process {process} was ended from outside, by JAX if another one is gone (see above); "
            "start all again with the same command: it goes on from the last checkpoint."
        )
        self._shell = subprocess.Popen(
            ["sh", "-c", 'read -r line || printf "%s\\n" "$1" >&2', "sh", sentence],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            # What stops this process by its group must not reach the shell before.
            start_new_session=True,
        )

    def withdraw(self) -> None:
        """Leaves the sentence unsaid."""
        # Two threads may end the process at once.
        with contextlib.suppress(OSError, ValueError):
            self._shell.communicate(b"\n")


def _watch(left: threading.Event, words: _LastWords) -> None:
    """Ends this process when another one has failed."""
    while not left.wait(_LOOK):
        try:
            told = _client().key_value_try_get(_FAILED)
        except (RuntimeError, AttributeError):
            # Nothing was said, or the service has ended, which JAX notices itself.
            continue
        if not left.is_set():
            code, sentence = json.loads(told)
            print(sentence, file=sys.stderr, flush=True)
            _end(code, words)


def _fail(error: BaseException, words: _LastWords) -> NoReturn:
    """Says why this process fails, gives the others time to look, and ends it."""
    if "coordination" in f"{error}".lower():
        # Another one is gone: JAX says which, and aborts this one in a moment.
        time.sleep(_FAREWELL)
    code, explained = 2, storage.explain(error)
    if isinstance(error, KeyboardInterrupt):
        code, explained = interrupt.exit_code(error), interrupt.SENTENCE
    # Nobody may read it any more; the others have to be told all the same.
    with contextlib.suppress(OSError):
        if explained is None:
            traceback.print_exception(error)
        else:
            print(explained, file=sys.stderr, flush=True)
    why = f"{explained or error}".strip().partition("\n")[0] or type(error).__name__
    told = f"Process {distributed.global_state.process_id} ended, and all with it: {why}"
    try:
        _client().key_value_set(_FAILED, json.dumps([code, told]))
    except RuntimeError:
        # Another one failed first.
        pass
    _end(code, words)


def _end(code: int, words: _LastWords) -> NoReturn:
    """Ends this process at once: a tidy end would wait for the others, which are gone."""
    if first():
        # The others hear of it through this one's service, without which JAX aborts them.
        time.sleep(_FAREWELL)
    words.withdraw()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _client() -> Any:
    return distributed.global_state.client
