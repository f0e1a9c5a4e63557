"""What the processes of one run tell each other between steps.

One process is the usual case; then nothing here does anything. Several start with the same command,
each on its own host or devices, and meet in `core.membership`. Within compiled steps they talk
through `core.parallel`; what is said here goes as text through the service that the first of them
runs, and needs no device.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
from jax._src import distributed
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.core.provenance import source_digest

# Keys of a configuration that name a place or a pace, which hosts may see differently.
_OWN = {"cache_dir", "note", "data_dir", "workers", "data.data_dir", "data.cache_mb",
        "data.workers"}  # fmt: skip
_NEWS = "medinit/news/"
# Milliseconds. What is said is waited for as long as it takes: a process that dies ends the others.
_EVER = 1 << 30


def alone() -> bool:
    """Returns whether this is a run of one process."""
    return distributed.global_state.client is None or distributed.global_state.num_processes == 1


def first() -> bool:
    """Returns whether this process is the one that writes logs and files."""
    return alone() or distributed.global_state.process_id == 0


def console() -> Console:
    """Returns where progress is shown: stderr, for the first process alone."""
    return Console(stderr=True, quiet=not first())


def everyone(name: str, text: str) -> list[str]:
    """Returns the texts of all processes, in their order; every process calls it.

    Args:
        name: What it is about.
        text: What this process says.
    """
    if alone():
        return [text]
    key = f"medinit/{next(_numbers)}/{name}"
    _client().key_value_set(f"{key}/{share()[0]}", text)
    return [_client().blocking_key_value_get(f"{key}/{i}", _EVER) for i in range(_count())]


def share() -> tuple[int, int]:
    """Returns the number of this process and how many there are: what it takes of work to divide.

    Rows of batches are divided by `core.parallel`, which knows whose devices they lie on.
    """
    return (0, 1) if alone() else (distributed.global_state.process_id, _count())


def meet() -> None:
    """Waits until all processes are here; every process calls it."""
    if not alone():
        _client().wait_at_barrier("medinit/meet", _EVER)


def any_of(value: bool) -> bool:
    """Returns whether a value is true for any process; every process calls it."""
    return value if alone() else str(True) in everyone("any", str(bool(value)))


def any_after(step: int, value: bool) -> bool:
    """Returns what `any_of` does, once a step; cheaper, as hardly ever is anything said.

    Args:
        step: Number of the step, the same on all processes.
        value: True if, say, this process was asked to stop.
    """
    if alone():
        return value
    if value:
        _client().key_value_set(f"{_NEWS}{step}", "", allow_overwrite=True)
    _client().wait_at_barrier("medinit/step", _EVER)
    # What is said after this barrier, of the next step, may be there already.
    return any(name.endswith(f"/{step}") for name, _ in _client().key_value_dir_get(_NEWS))


def told(value: bool) -> bool:
    """Returns whether a value was true for any process by now, without waiting for the others."""
    if alone():
        return value
    if value:
        _client().key_value_set(f"{_NEWS}told", "", allow_overwrite=True)
    return any(name.endswith("/told") for name, _ in _client().key_value_dir_get(_NEWS))


def once(function: Callable[[], Any]) -> Any:
    """Runs a function on the first process, and returns its result on all; every process calls it.

    Args:
        function: Returns what JSON can hold.

    Raises:
        UsageError: As the function raised it, on all processes.
    """
    if alone():
        return function()
    key = f"medinit/{next(_numbers)}/once"
    if not first():
        said = json.loads(_client().blocking_key_value_get(key, _EVER))
        if "error" in said:
            raise UsageError(said["error"])
        return said["value"]
    try:
        value = function()
    except UsageError as error:
        _client().key_value_set(key, json.dumps({"error": str(error)}))
        raise
    _client().key_value_set(key, json.dumps({"value": value}))
    return value


def first_then_others(function: Callable[[], Any]) -> Any:
    """Runs a function on every process, on the first one before the others.

    For what the first one writes and the others then find, where they see the same storage.
    """
    if alone():
        return function()
    found = function() if first() else None
    once(lambda: None)
    return found if first() else function()


def check_alike(name: str, facts: Mapping[str, Any]) -> None:
    """Raises UsageError where processes do not agree; every process calls it.

    Args:
        name: What is compared, as "configuration".
        facts: Values by what they are called; JSON.
    """
    if alone():
        return
    own = {key: json.dumps(value, sort_keys=True, default=str) for key, value in facts.items()}
    held = [json.loads(text) for text in everyone("alike", json.dumps(own))]
    for process, other in enumerate(held):
        wrong = [k for k in sorted(held[0] | other) if held[0].get(k) != other.get(k)]
        if wrong:
            more = f", and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""
            raise UsageError(
                f"The processes have not the same {name}: {wrong[0]} is "
                f"{_short(held[0].get(wrong[0]))} on process 0 and {_short(other.get(wrong[0]))} "
                f"on process {process}{more}; start all with the same command, code and data."
            )


def check_command(config: ml_collections.ConfigDict, shared: Sequence[str]) -> None:
    """Raises UsageError unless the processes of a run, if there are several, can share it.

    Args:
        config: The configuration, alike on all but for where data and caches lie; so is the code.
        shared: Routes that several processes can share.
    """
    if alone():
        return
    if config.route not in shared:
        raise UsageError(
            f"The route {config.route} runs in one process; start it without --cluster, "
            "--coordinator, --processes and --process."
        )
    check_alike("code", {"jax": jax.__version__, "digest of medinit_jax": source_digest()})
    facts = {f"config.{key}": value for key, value in _flat(config) if key not in _OWN}
    check_alike("configuration", facts)


def check_shared(file: Path, key: str) -> None:
    """Raises UsageError unless all processes see a file of the first one; every one calls it.

    Args:
        file: The file.
        key: What says where it lies, as "--workdir".
    """
    if alone():
        return
    # A network's file system may show a new file a little later.
    for _ in range(20):
        if file.is_file():
            break
        time.sleep(0.25)
    # A file of that name on a disk of its own has another time.
    times = everyone("sees", str(file.stat().st_mtime_ns) if file.is_file() else "")
    blind = [process for process, text in enumerate(times) if text != times[0]]
    if blind:
        raise UsageError(
            f"Process {blind[0]} does not see {file}, which process 0 wrote; set {key} to a folder "
            "on storage that all hosts share."
        )


def _client() -> Any:
    return distributed.global_state.client


def _count() -> int:
    return distributed.global_state.num_processes


# Every process counts what it says alike, since all run the same program.
_numbers = itertools.count()


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(text: str | None) -> str:
    if text is None:
        return "absent"
    return text if len(text) <= 60 else f"{text[:57]}..."
