"""A run's folder: which configuration it belongs to, and files that are never half-written."""

import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax.core import cluster
from medinit_jax.core.errors import InUse, UsageError
from medinit_jax.core.secrets import redacted

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
LOCK_FILE = "lock"


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys in one move, so that a reader never sees half a file.

    Passwords in addresses are left out, see `core.secrets`.

    Args:
        path: the file; replaced if it is there.
        value: what to write.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(redacted(json.dumps(value, indent=2, sort_keys=True)) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a compressed .npz file in one move.

    Args:
        path: the file; replaced if it is there.
        arrays: plain arrays by name.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    os.replace(temporary, path)


def share(path: Path) -> None:
    """Gives a file the permissions that any new file gets, which safetensors withholds.

    Args:
        path: the file.
    """
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def claim_workdir(
    workdir: str | os.PathLike[str],
    config: ml_collections.ConfigDict,
    name: str,
    free: Sequence[str] = (),
) -> bool:
    """Makes a folder the home of one configuration, or finds that it already is.

    Args:
        workdir: the folder; made if it is missing.
        config: the whole configuration.
        name: the configuration's name, kept beside it for people.
        free: dotted keys (or the start of some) that may differ between the runs of one workdir.

    Returns:
        True if an earlier run of this configuration is there to go on from.

    Raises:
        UsageError: the folder holds another configuration, or files but no configuration. Nothing
            in it is touched.
    """
    folder = Path(workdir)
    wanted = json.loads(redacted(json.dumps(config.to_dict(), default=str)))
    _check_folder(folder)
    file = folder / CONFIG_FILE
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, {"name": name, "config": wanted})
        return False
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        held_name, held_config = held["name"], held["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file} cannot be read as a run's configuration ({error}); "
            "choose another folder with --workdir=, or remove this one."
        ) from error
    differences = _differences(held_config, wanted, tuple(free))
    if differences:
        raise UsageError(
            f"{folder} holds a run of {held_name} with another configuration "
            f"({'; '.join(differences)}); set these keys as they were to resume it, "
            "or start a new run with --workdir=."
        )
    return True


@contextmanager
def claimed(
    workdir: str | os.PathLike[str],
    config: ml_collections.ConfigDict,
    name: str,
    free: Sequence[str] = (),
) -> Iterator[None]:
    """Claims a folder, see `claim_workdir`, and keeps other runs out of it meanwhile.

    Of several processes that share a run the first one claims it for all. A run that is refused
    before it left anything gives the folder back, so that its settings can be put right.

    Args:
        workdir: the folder.
        config: the whole configuration.
        name: the configuration's name.
        free: keys that may differ.

    Raises:
        UsageError: as `claim_workdir`, another run is there, or a process does not see the folder.
    """
    with ExitStack() as stack:

        def claim() -> None:
            _check_folder(Path(workdir))
            stack.enter_context(locked(workdir))
            claim_workdir(workdir, config, name, free)
            stack.push(lambda kind, *_: _give_back(Path(workdir), kind))

        cluster.once(claim)
        cluster.check_shared(Path(workdir) / CONFIG_FILE, "--workdir")
        yield


def _give_back(folder: Path, kind: type[BaseException] | None) -> None:
    """Takes back the claim of a run that ended by `kind`, if it was refused and left nothing."""
    refused = kind is not None and issubclass(kind, UsageError)
    if refused and {entry.name for entry in folder.iterdir()} <= {CONFIG_FILE, LOCK_FILE}:
        (folder / CONFIG_FILE).unlink(missing_ok=True)


@contextmanager
def locked(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a folder for one run; the system lets go of it however the process ends.

    Args:
        workdir: the folder; made if it is missing.

    Raises:
        InUse: another run, of this process or of another one, holds it.
    """
    folder = Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_FILE, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InUse(
                f"{folder} is in use by {_holder(file)}; wait until it has ended, stop it, or "
                "choose another folder with --workdir=."
            ) from error
        except OSError as error:
            # Some file systems of clusters know no locks.
            print(
                f"WARNING: {folder} cannot be locked ({error.strerror}); see that no other run "
                "writes there.",
                file=sys.stderr,
            )
            yield
            return
        file.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            # Processes that were forked meanwhile have the file open, too.
            fcntl.flock(file, fcntl.LOCK_UN)


def is_held(workdir: str | os.PathLike[str]) -> bool:
    """Returns whether a run holds a folder, as far as the system knows locks.

    Args:
        workdir: the folder.
    """
    try:
        with open(Path(workdir) / LOCK_FILE, "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # No folder, or a file system without locks.
        return False
    return False


def is_finished(workdir: str | os.PathLike[str], console: Console) -> bool:
    """Returns whether a run has left its summary, and says so.

    Args:
        workdir: its folder.
        console: where it is said.
    """
    if not cluster.once((Path(workdir) / SUMMARY_FILE).is_file):
        return False
    console.print(
        f"{workdir} is finished; remove it or choose another --workdir to run again.",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return True


def _holder(file: TextIO) -> str:
    """Returns who wrote a lock, in words."""
    file.seek(0)
    try:
        held = json.loads(file.read())
        return f"process {int(held['pid'])} on {held['host']}"
    except (ValueError, KeyError, TypeError):
        # It has the lock, but has not signed yet.
        return "another process"


def _check_folder(folder: Path) -> None:
    """Raises UsageError unless a folder is missing, empty, or a run's."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose a folder for the run with --workdir=.")
    if (folder / CONFIG_FILE).exists() or not folder.exists():
        return
    # A process that was killed at its first moment leaves the lock alone.
    if any(entry.name != LOCK_FILE for entry in folder.iterdir()):
        raise UsageError(
            f"{folder} holds files but no {CONFIG_FILE}, so it is no run of this program; "
            "choose an empty or new folder with --workdir=."
        )


def _differences(held: Mapping, wanted: Mapping, free: tuple[str, ...]) -> list[str]:
    old, new = _flatten(held), _flatten(wanted)
    return [
        f"{key} is {_show(old, key)} there and {_show(new, key)} here"
        for key in sorted(old.keys() | new.keys())
        if (key not in old or key not in new or old[key] != new[key])
        and not any(key == start or key.startswith(start + ".") for start in free)
    ]


def _show(flat: dict[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "absent"


def _flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
