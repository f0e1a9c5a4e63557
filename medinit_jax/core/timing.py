"""Where the time of a training goes: waiting for data, the host, the device; and what it holds."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

# Names of what is measured here start with it: it differs from run to run, so that it is kept
# apart from results, and consoles leave it out.
PREFIX = "run/"
_COMPILED = "/jax/core/compile/backend_compile_duration"
# Steps before a trace begins, so that it does not show the compiler.
_SETTLING = 3


class Stopwatch:
    """Adds up the seconds of the parts of steps, and what was compiled meanwhile.

    Use as a context manager around a training, and hand it to `core.loop.run`.

    Args:
        per_step: How many of what a step takes, such as images and architectures.
        profile: So many steps are traced for TensorBoard's profiler, soon after the start; 0 =
            none.
        folder: Where the trace goes.
        seen: Step -> figures that are added, such as architectures seen so far.
        clock: The time in seconds.
    """

    def __init__(
        self,
        per_step: Mapping[str, float],
        profile: int = 0,
        folder: Path | None = None,
        seen: Callable[[int], Mapping[str, float]] = lambda step: {},
        clock: Callable[[], float] = time.monotonic,
    ):
        self._per_step, self._seen, self._clock = dict(per_step), seen, clock
        self._profile, self._folder = profile, folder
        self._steps, self._tracing = 0, False
        self.restart()

    def __enter__(self) -> Stopwatch:
        """Starts to count what is compiled."""
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *error: object) -> None:
        """Ends it, and a trace that is not over."""
        jax.monitoring.unregister_event_duration_listener(self._listen)
        self._stop_trace()

    def restart(self) -> None:
        """Begins anew, as if nothing had been before."""
        self._started = self._clock()
        self._seconds: dict[str, float] = {}
        self._compiled, self._compiling = 0, 0.0

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            self._compiled += 1
            self._compiling += duration_secs

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Counts what is done within to a part of the step."""
        started = self._clock()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - started

    def count_step(self) -> None:
        """Says that a step begins: a trace starts, or ends, before it."""
        if self._profile > 0 and self._steps == _SETTLING and self._folder:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        if self._steps == _SETTLING + self._profile:
            self._stop_trace()
        self._steps += 1

    def _stop_trace(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()

    def figures(self, step: int, steps: int) -> dict[str, float]:
        """Returns what was measured since the last call, and begins anew.

        Args:
            step: The step that training is at.
            steps: How many were taken in this time.

        Returns:
            Milliseconds a step of every part and of the whole; what a step takes, per second;
            programs compiled (or loaded from the cache) and the seconds of it; megabytes that the
            process held at most, and the first device, where it tells.
        """
        whole = max(self._clock() - self._started, 1e-9)
        found = {f"{name}_ms": 1e3 * spent / steps for name, spent in self._seconds.items()}
        found["step_ms"] = 1e3 * whole / steps
        found |= {f"{name}_per_s": n * steps / whole for name, n in self._per_step.items()}
        found |= {"compiled": float(self._compiled), "compile_s": self._compiling, **_memory()}
        found |= self._seen(step)
        self.restart()
        return {f"{PREFIX}{name}": value for name, value in found.items()}


def _memory() -> dict[str, float]:
    """Returns the most memory that was in use, in megabytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    held = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in held:
        found["device_memory_mb"] = held["peak_bytes_in_use"] / 1e6
    return found
