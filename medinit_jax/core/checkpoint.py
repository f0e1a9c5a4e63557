"""Checkpoints of a run, and the folder of one published initializer.

A step's folder holds the arrays and the JSON beside them as orbax writes them, and `files.json`,
the length and digest of every file. Orbax leaves no folder of a save that was cut off; `files.json`
finds what happens to a folder later, before orbax reads from it, and names the file.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from etils import epath
from flax import traverse_util

from medinit_jax.core import cluster
from medinit_jax.core.errors import UsageError
from medinit_jax.core.secrets import redacted
from medinit_jax.core.workdir import share, write_json

PyTree = Any

LISTING = "files.json"
PARAMS_FILE = "params.safetensors"
METADATA_FILE = "initializer.json"
# What a folder of parameters is -> the file that describes it.
KINDS = {"initializer": METADATA_FILE, "model": "model.json"}
INITIALIZER_FOLDER = "initializer"


class Restored(NamedTuple):
    """What a checkpoint gives back.

    Attributes:
        step: the step after which it was saved.
        state: pytree like the template.
        iterator: the data iterator's state as it was handed to `save`, or None.
        extra: the JSON object that was handed to `save`.
    """

    step: int
    state: PyTree
    iterator: Any
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, newest kept."""

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2):
        """Opens the folder of a run's checkpoints, and makes it if it is missing.

        Of several processes all call this, save and restore; the folder is on storage they share.

        Args:
            folder: the folder.
            keep: how many of the newest stay.
        """
        self.folder = Path(folder).absolute()
        cluster.once(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        # Saves are synchronous: a hypernetwork is a few megabytes, and the data iterator and the
        # state must be of the same step.
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=("state", "record"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=False,
                create=False,
                multiprocessing_options=_sharing(),
            ),
        )

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: PyTree,
        iterator: Any = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a step whole or not at all, and drops the oldest beyond `keep`.

        Args:
            step: steps taken so far.
            state: pytree of arrays.
            iterator: what `get_state()` of the data iterator returned (grain gives a JSON object
                or bytes), or None.
            extra: a JSON object, such as the configuration and the code version.
        """
        if isinstance(iterator, bytes):
            iterator = {"utf8": iterator.decode()}
        elif iterator is not None:
            iterator = {"json": iterator}
        record = {"iterator": iterator, "extra": _plain(extra or {}), "leaves": _leaves(state)}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
            ),
        )
        self._manager.wait_until_finished()
        if jax.process_index() == 0:
            place = self.folder / str(step)
            write_json(place / LISTING, _listing(place))

    def restore(self, template: PyTree, step: int | None = None) -> Restored:
        """Reads a checkpoint back, bit for bit.

        Args:
            template: pytree of arrays (or shapes and dtypes) with the structure, the dtypes and the
                placement on devices that the state is to have.
            step: which; None = the newest.

        Returns:
            The step, the state, the iterator's state and the JSON object.

        Raises:
            UsageError: no such checkpoint, a file that was cut short, changed or removed, or a
                state that does not fit the template.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            there = f"it has steps {', '.join(map(str, steps))}" if steps else "it has none"
            raise UsageError(
                f"{self.folder} has no checkpoint {'' if step is None else f'of step {step} '}"
                f"({there}); run the stage train first, or name another folder."
            )
        step = steps[-1] if step is None else step
        place = self.folder / str(step)
        earlier = [other for other in steps if other < step]
        remedy = f"remove the folder {place} to go on from " + (
            f"step {earlier[-1]}" if earlier else "the start"
        )
        _check_files(place, remedy)
        try:
            record = json.loads((place / "record" / "metadata").read_text(encoding="utf-8"))
            leaves = record["leaves"]
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(place, str(error), remedy) from error
        _check_fit(place, leaves, _leaves(template))
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
            )
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(place, str(error).split("[tensorstore_spec")[0], remedy) from error
        iterator = record["iterator"]
        if iterator is not None:
            iterator = iterator["utf8"].encode() if "utf8" in iterator else iterator["json"]
        return Restored(step, restored["state"], iterator, record["extra"])

    def read(self) -> Restored:
        """Reads the newest checkpoint without knowing its state beforehand.

        Returns:
            As `restore`, but the state is nested dicts (and lists) of NumPy arrays.

        Raises:
            UsageError: No checkpoint, or a file that was cut short, changed or removed.
        """
        steps = self.steps()
        if not steps:
            raise UsageError(f"{self.folder} has no checkpoint; train first, or name another one.")
        place = self.folder / str(steps[-1])
        remedy = "fetch the run again"
        _check_files(place, remedy)
        try:
            record = json.loads((place / "record" / "metadata").read_text(encoding="utf-8"))
            described: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(place / "state"))
            # Arrays of NumPy: whatever devices it was saved from, it is wanted on the host.
            target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), described.tree)
            restored = self._manager.restore(
                steps[-1], args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
            )
            return Restored(steps[-1], restored["state"], None, record["extra"])
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(place, str(error).split("[tensorstore_spec")[0], remedy) from error

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()


def _plain(extra: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(redacted(json.dumps(dict(extra))))


def save_params(
    path: str | os.PathLike[str],
    params: PyTree,
    metadata: Mapping[str, Any],
    kind: str = "initializer",
) -> None:
    """Writes parameters and a JSON sidecar into a new folder.

    Args:
        path: the folder; must not exist.
        params: nested dicts of arrays.
        metadata: a JSON object: configuration, preprocessing, provenance.
        kind: what it is, a key of `KINDS`.

    Raises:
        UsageError: the folder is there already.
    """
    folder = Path(path)
    if folder.exists():
        raise UsageError(f"{folder} is there already; remove it or write to another path.")
    flat = {
        name: np.asarray(leaf, order="C")
        for name, leaf in traverse_util.flatten_dict(params, sep="/").items()
    }
    # A reader sees the whole folder or none of it.
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        safetensors.numpy.save_file(flat, temporary / PARAMS_FILE)
        share(temporary / PARAMS_FILE)
        digest = _digest(temporary / PARAMS_FILE)
        write_json(temporary / KINDS[kind], {"metadata": dict(metadata), "params": digest})
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_params(
    path: str | os.PathLike[str], kind: str = "initializer"
) -> tuple[PyTree, dict[str, Any]]:
    """Reads what `save_params` wrote.

    Args:
        path: the folder.
        kind: what it has to be, a key of `KINDS`.

    Returns:
        Nested dicts of NumPy arrays, and the metadata.

    Raises:
        UsageError: no such folder, or a file that was cut short or changed.
    """
    folder = Path(path)
    described = folder / KINDS[kind]
    for file in (described, folder / PARAMS_FILE):
        if not file.is_file():
            raise UsageError(f"{folder} is no {kind}: {file.name} is missing; check the path.")
    try:
        sidecar = json.loads(described.read_text(encoding="utf-8"))
        metadata, digest = sidecar["metadata"], sidecar["params"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{described} cannot be read ({error}); fetch the {kind} again."
        ) from error
    found = _digest(folder / PARAMS_FILE)
    if found != digest:
        raise UsageError(
            f"{folder / PARAMS_FILE} is not what was saved ({_compare(digest, found)}); "
            f"fetch the {kind} again."
        )
    flat = safetensors.numpy.load_file(folder / PARAMS_FILE)
    return traverse_util.unflatten_dict(flat, sep="/"), metadata


def _sharing() -> ocp.options.MultiprocessingOptions:
    if cluster.alone():
        return ocp.options.MultiprocessingOptions()
    # Named, so that they wait for each other through the service of `core.cluster`, not by devices.
    return ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes=set(range(jax.process_count()))
    )


def _leaves(tree: PyTree) -> dict[str, str]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        )
        for path, leaf in paths
    }


def _check_fit(place: Path, held: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    wrong = [
        f"{name} is {held.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
        for name in sorted(held.keys() | wanted.keys())
        if held.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UsageError(
            f"The checkpoint {place} does not fit what this configuration builds "
            f"({'; '.join(wrong[:3])}{more}); use the configuration that it was saved with."
        )


def _digest(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "bytes": os.fstat(file.fileno()).st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _compare(held: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if held["bytes"] != found["bytes"]:
        return f"{found['bytes']} bytes instead of {held['bytes']}"
    return "its content has changed"


def _listing(place: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(place)): _digest(path)
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name != LISTING
    }


def _check_files(place: Path, remedy: str) -> None:
    file = place / LISTING
    if not file.exists():
        # The process ended between orbax's commit and the listing; orbax's own checks remain.
        return
    try:
        listing = json.loads(file.read_text(encoding="utf-8"))
        for name, held in listing.items():
            path = place / name
            if not path.is_file():
                raise _damaged(place, f"{name} is missing", remedy)
            found = _digest(path)
            if found != held:
                raise _damaged(place, f"{name}: {_compare(held, found)}", remedy)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise _damaged(place, f"{LISTING}: {error}", remedy) from error


def _damaged(place: Path, what: str, remedy: str) -> UsageError:
    return UsageError(f"The checkpoint {place} is damaged ({what.strip()}); {remedy}.")
