"""Checkpoints of a run.

A step's folder holds the arrays and the JSON beside them as orbax writes them, and `files.json`,
the length and digest of every file. A save that was cut off leaves a folder with an ending of
orbax's, which is told and removed by the next run; `files.json` finds what happens to a folder
later, before orbax reads from it, and names the file.
"""

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from medinit_jax.core import cluster, listing, storage
from medinit_jax.core.errors import UsageError
from medinit_jax.core.secrets import redacted

PyTree = Any


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


class Damaged(UsageError):
    """A checkpoint of which a file was cut short, changed or removed."""


class _Known(logging.Filter):
    """Keeps orbax from showing the stack of an error that it raises as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "_SignalingThread" not in record.getMessage()


logging.getLogger("absl").addFilter(_Known())


def tell(sentence: str) -> None:
    """Shows a sentence on stderr."""
    print(sentence, file=sys.stderr, flush=True)


class Checkpoints:
    """The checkpoints of one run, newest kept."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        keep: int = 2,
        verify: bool = False,
        tell: Callable[[str], None] = tell,
    ):
        """Opens the folder of a run's checkpoints, and makes it if it is missing.

        Of several processes all call this, save and restore; the folder is on storage they share.

        Args:
            folder: the folder.
            keep: how many of the newest stay.
            verify: whether each is read back after it was written and compared.
            tell: takes sentences about what was found.
        """
        self.folder = Path(folder).absolute()
        cluster.once(lambda: self.folder.mkdir(parents=True, exist_ok=True))
        self._verify = verify
        self._tell = tell if cluster.first() else lambda sentence: None
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_names=("state", "record"),
            # Asynchronous is what is below: orbax would not write `files.json`.
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=False,
                create=False,
                multiprocessing_options=_sharing(),
            ),
        )
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None

    def tidy(self) -> None:
        """Tells and removes what an earlier run left half-written; for the one run that writes."""
        for place in self._unfinished():
            steps = self.steps()
            newest = f"the newest whole one is of step {steps[-1]}" if steps else "none is whole"
            self._tell(f"{place} was cut off while it was written and is removed; {newest}.")
            self._remove(place)

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, oldest first."""
        self.wait()
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: PyTree,
        iterator: Any = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a step whole or not at all, and drops the oldest beyond `keep`.

        A step that is there already stays as it is: all that comes later follows from it.

        One process copies the state and goes on while a thread writes; what goes wrong there is
        raised by the next call. Several write together before any goes on.

        Args:
            step: steps taken so far.
            state: pytree of arrays.
            iterator: what `get_state()` of the data iterator returned (grain gives a JSON object
                or bytes), or None.
            extra: a JSON object, such as the configuration and the code version.

        Raises:
            UsageError: There is no room, even without older checkpoints, or no storage.
        """
        if isinstance(iterator, bytes):
            iterator = {"utf8": iterator.decode()}
        elif iterator is not None:
            iterator = {"json": iterator}
        record = {"iterator": iterator, "extra": _plain(extra or {}), "leaves": _leaves(state)}
        self.wait()
        if not cluster.alone():
            self._write(step, state, record)
            return
        # A copy even where the host could read the device's memory: the next step may reuse it.
        held = jax.tree.map(np.array, jax.device_get(state))
        self._writing = self._writer.submit(self._write, step, held, record)

    def wait(self) -> None:
        """Waits until what was saved is on disk, and raises what kept it from getting there."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, step: int, state: PyTree, record: Mapping[str, Any]) -> None:
        place = self.folder / str(step)
        try:
            try:
                self._commit(step, state, record)
            except Exception as error:
                if not storage.is_full(error) or not self._make_room(step):
                    raise
                self._commit(step, state, record)
        except Exception as error:
            for unfinished in self._unfinished():
                self._remove(unfinished)
            explained = storage.explain(error, f"The checkpoint {place}")
            if explained is None:
                raise
            raise explained from error

    def _commit(self, step: int, state: PyTree, record: Mapping[str, Any]) -> None:
        if step not in self._manager.all_steps():
            if cluster.first():
                # TensorStore's threads would show many stacks where it finds no room.
                storage.reserve(self.folder, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
                ),
            )
            self._manager.wait_until_finished()
        place = self.folder / str(step)
        if cluster.first():
            listing.write_listing(place)
        if self._verify:
            found = self._restore(step, state)
            if not all(map(_same_bits, jax.tree.leaves(state), jax.tree.leaves(found))):
                raise _damaged(place, "read back, it is not what was written", "try other storage")

    def _make_room(self, step: int) -> bool:
        """Removes all but the newest whole checkpoint; returns whether anything was there."""
        whole = [other for other in self._manager.all_steps() if other != step]
        spare = [self.folder / str(other) for other in sorted(whole)[:-1]]
        spare += self._unfinished() + list(self.folder.glob("*.damaged"))
        for place in spare:
            self._remove(place)
        self._manager.reload()
        if spare:
            names = ", ".join(place.name for place in spare)
            self._tell(f"There is no room for checkpoint {step} in {self.folder}: removed {names}.")
        return bool(spare)

    def _unfinished(self) -> list[Path]:
        return sorted(place for place in self.folder.glob("*.orbax-checkpoint-tmp*"))

    def _remove(self, place: Path) -> None:
        if cluster.first():
            shutil.rmtree(place, ignore_errors=True)

    def restore(self, template: PyTree, step: int | None = None) -> Restored:
        """Reads a checkpoint back, bit for bit.

        Without `step`, a newest one that is damaged is told and set aside under another name, and
        the one before it is read.

        Args:
            template: pytree of arrays (or shapes and dtypes) with the structure, the dtypes and the
                placement on devices that the state is to have.
            step: which; None = the newest.

        Returns:
            The step, the state, the iterator's state and the JSON object.

        Raises:
            UsageError: no such checkpoint, none without a file that was cut short, changed or
                removed, or a state that does not fit the template.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            there = f"it has steps {', '.join(map(str, steps))}" if steps else "it has none"
            raise UsageError(
                f"{self.folder} has no checkpoint {'' if step is None else f'of step {step} '}"
                f"({there}); run the stage train first, or name another folder."
            )
        if step is not None:
            return self._read(step, template)
        while len(steps) > 1:
            newest = steps.pop()
            try:
                return self._read(newest, template)
            except Damaged as error:
                aside = self._set_aside(newest)
                self._tell(
                    f"{str(error).partition(';')[0]}; it lies in {aside} now, and the run goes on "
                    f"from step {steps[-1]}."
                )
        return self._read(steps[0], template)

    def _read(self, step: int, template: PyTree) -> Restored:
        place = self.folder / str(step)
        remedy = f"remove the folder {place} to go on from " + (
            f"step {max(earlier)}"
            if (earlier := [other for other in self._manager.all_steps() if other < step])
            else "the start"
        )
        found = listing.problem(place)
        if found:
            raise _damaged(place, found, remedy)
        try:
            record = json.loads((place / "record" / "metadata").read_text(encoding="utf-8"))
            leaves = record["leaves"]
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(place, str(error), remedy) from error
        _check_fit(place, leaves, _leaves(template))
        try:
            state = self._restore(step, template)
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(place, str(error).split("[tensorstore_spec")[0], remedy) from error
        iterator = record["iterator"]
        if iterator is not None:
            iterator = iterator["utf8"].encode() if "utf8" in iterator else iterator["json"]
        return Restored(step, state, iterator, record["extra"])

    def _restore(self, step: int, template: PyTree) -> PyTree:
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=args)["state"]

    def _set_aside(self, step: int) -> Path:
        """Gives a checkpoint a name that is no step's, and returns it."""
        aside = self.folder / f"{step}.damaged"
        if cluster.first():
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(self.folder / str(step), aside)
        self._manager.reload()
        return aside

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
        found = listing.problem(place)
        if found:
            raise _damaged(place, found, remedy)
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
        """Waits for what is written, and ends the threads."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._manager.close()


def open_checkpoints(workdir: Path, train: Mapping[str, Any]) -> Checkpoints:
    """Opens the checkpoints of a run as its configuration says, for that run alone.

    Args:
        workdir: the run's folder.
        train: with `checkpoints_kept`, at least 1, and `checkpoints_verified`.

    Raises:
        UsageError: None would stay.
    """
    keep = train["checkpoints_kept"]
    if keep < 1:
        raise UsageError(
            f"config.train.checkpoints_kept={keep} leaves none to go on from; set it to at least "
            "1, or to 2, so that one is left when the newest is damaged."
        )
    checkpoints = Checkpoints(workdir / "checkpoints", keep, train["checkpoints_verified"])
    checkpoints.tidy()
    return checkpoints


def _plain(extra: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(redacted(json.dumps(dict(extra))))


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


def _same_bits(a: Any, b: Any) -> bool:
    """Compares two arrays that lie alike, as far as this process has them."""
    parts = ([np.asarray(p.data) for p in x.addressable_shards] if _far(x) else [x] for x in (a, b))
    pairs = zip(*parts, strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def _far(x: Any) -> bool:
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def _damaged(place: Path, what: str, remedy: str) -> Damaged:
    return Damaged(f"The checkpoint {place} is damaged ({what.strip()}); {remedy}.")
