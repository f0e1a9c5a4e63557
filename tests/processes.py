"""Runs of several processes of two devices each, on this machine."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from jaxlib import _jax

TESTS = Path(__file__).resolve().parent
# Where a script finds the package, the tests and what they share.
FOLDERS = (TESTS.parent, TESTS, TESTS / "swcl", TESTS / "hyper")
needs_gloo = pytest.mark.skipif(
    not hasattr(_jax, "make_gloo_tcp_collectives"), reason="this jaxlib was built without gloo"
)
# Runs the program as `python -m medinit_jax.main` does, with the network of `tiny_pretrain`.
MAIN = """
    import sys
    from tiny_pretrain import tiny_zoo
    from medinit_jax.main import main
    with tiny_zoo():
        sys.exit(main(["test", *sys.argv[1:]]))
"""


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def begin(script, arguments, devices=2, **variables):
    """Starts a script, with the folder of tests on its path."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(map(str, FOLDERS)),
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(started, timeout=560):
    """Waits for processes; returns (exit code, stdout, stderr) of each."""
    try:
        outputs = [one.communicate(timeout=timeout) for one in started]
    finally:
        for one in started:
            one.kill()
    return [(one.returncode, *texts) for one, texts in zip(started, outputs, strict=True)]


def await_that(condition, started, timeout=560):
    """Waits until something holds, while all processes run; otherwise ends them, and fails."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline or any(one.poll() is not None for one in started):
            for one in started:
                one.kill()
            pytest.fail(str([one.communicate() for one in started]))
        time.sleep(0.05)


def flags_of(rank, port, count=2):
    return [f"--coordinator=127.0.0.1:{port}", f"--processes={count}", f"--process={rank}"]


def run_main(arguments, count=2, own=(), **options):
    """Runs `main` in several processes; `own` are further arguments of each."""
    port = free_port()
    own = own or [()] * count
    started = [
        begin(MAIN, [*arguments, *flags_of(rank, port, count), *own[rank]], **options)
        for rank in range(count)
    ]
    return outcome(started)
