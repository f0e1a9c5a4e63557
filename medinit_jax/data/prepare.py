"""Prepares a dataset with all cores, so that a kill loses one shard and not the work before it.

What comes out is what tfds' own writer gives, in the same order (examples sorted by the hash of
their key), and is read by tfds. Until everything is there it lies in `<version>.incomplete`, where
every shard has a note of its own beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.base import Builder, refuse_many_skipped
from medinit_jax.data.layout import DatasetLayoutError, Tree
from medinit_jax.data.manifest import (
    MANIFEST,
    earlier_manifest,
    make_manifest,
    read_manifest,
    sum_labels,
)
from medinit_jax.data.shards import Report, Shard, checksums, cut, note_of, write_shards

# What the working folder was begun for.
PLAN = "plan.txt"


def prepare(
    builder: Builder,
    folder: epath.PathLike | None = None,
    *,
    workers: int | None = None,
    host: int = 0,
    hosts: int = 1,
    report: Report = lambda done, total: None,
) -> dict[str, Any] | None:
    """Writes a dataset to `builder.data_path`; what an earlier call has written is kept.

    Args:
        builder: The dataset and its config.
        folder: The user's download; None for phantoms, which are drawn.
        workers: Processes; None: as many as there are cores; 0: this one.
        host: Which of the `hosts` this is; each writes its part of the shards to the same data_dir.
        hosts: Number of hosts.
        report: Told how far it is.

    Returns:
        The manifest; None as long as other hosts are not done.

    Raises:
        DatasetLayoutError: Something is wrong with the download.
        UsageError: `host` is not one of `hosts`, the folder is missing, or something else lies
            where the set should be, as one that was prepared under weaker checks.
    """
    if not 0 <= host < hosts:
        raise UsageError(f"host {host} of {hosts} hosts: count them from 0 to {hosts - 1}.")
    target = Path(builder.data_path)
    written = written_before(builder)
    if written is None:
        written = _written_now(builder, target, folder, workers, host, hosts, report)
    if written is not None and not builder.info.splits:
        # Another process has written the set since the builder was made.
        builder.info.read_from_directory(target)
    return written


def _written_now(
    builder: Builder,
    target: Path,
    folder: epath.PathLike | None,
    workers: int | None,
    host: int,
    hosts: int,
    report: Report,
) -> dict[str, Any] | None:
    """Writes what is not written yet, see `prepare`."""
    tree = builder.locate(folder)
    splits = builder.checked_items(tree)
    for link in tree.outside:
        logging.warning("%s is not read: only what lies in %s is.", link, tree.path)
    shards = [shard for split, items in splits.items() for shard in cut(split, items)]
    work = working_folder(target)
    try:
        begin(work, _plan(builder, tree.path, shards), alone=hosts == 1)
        if read_manifest(target) is None:
            write_shards(builder, work, shards[host::hosts], workers, report)
            if not all(note_of(work, builder, shard).exists() for shard in shards):
                return read_manifest(target)
            return finish(builder, work, target, shards, tree)
        # Another host finished while this one looked at the download: nothing is left to do.
        shutil.rmtree(work, ignore_errors=True)
    except (OSError, RuntimeError):
        # Whoever finishes first takes the working folder away from the others.
        if read_manifest(target) is None:
            raise
    return read_manifest(target)


def working_folder(target: Path) -> Path:
    """Returns where a set lies until it is whole."""
    return target.with_name(f"{target.name}.incomplete")


def written_before(builder: Builder) -> dict[str, Any] | None:
    """Returns the manifest of a set that is there already; None if it must be written.

    Raises:
        UsageError: Something else lies in its place, or it was prepared under weaker checks.
    """
    target = Path(builder.data_path)
    if not target.exists():
        return None
    written = earlier_manifest(builder)
    if written is None:
        raise UsageError(
            f"{target} was not written by this command: it has no {MANIFEST}; delete it, or "
            f"name another folder with --data-dir."
        )
    return written


def _plan(builder: Builder, root: epath.Path, shards: Sequence[Shard]) -> str:
    """Returns digests of all that decides what the shards hold: what is taken, and its files."""
    digest = hashlib.sha256(f"{builder.name} {builder.version} {builder.builder_config}".encode())
    digest.update(builder.on_corrupt.encode())
    # Hosts may see the download under different paths.
    prefix, states = str(root), hashlib.sha256()
    for shard in shards:
        for item in shard.items:
            digest.update(repr(item).replace(prefix, "").encode())
            for path in item.files.values():
                # Reading all bytes would take as long as preparing.
                state = os.stat(path)
                states.update(f"{state.st_size} {state.st_mtime_ns} ".encode())
    return f"{digest.hexdigest()}\n{states.hexdigest()}\n"


def begin(work: Path, plan: str, alone: bool) -> None:
    """Makes the working folder, emptied if it was begun for another plan.

    Args:
        work: The folder.
        plan: Two lines, digests of what is asked for and of the state of what is read for it.
        alone: Whether no other host may be at work there.

    Raises:
        UsageError: Other hosts began it for another plan.
    """
    begun = _begun(work)
    if begun is None and work.exists():
        begun = _begun(work) or "no plan"
    if begun == plan:
        return
    if begun is not None:
        if begun.partition("\n")[0] == plan.partition("\n")[0]:
            why = "the files of the download (their sizes or times) changed since it was begun"
        else:
            why = "it was begun with other files or options"
        if not alone:
            raise UsageError(
                f"{work} does not fit: {why}; start all hosts with the same command and the same "
                f"files (copy them with their times), or delete that folder."
            )
        logging.warning("%s is written anew: %s.", work, why)
        shutil.rmtree(work)
    # It appears with its plan inside, or another host that starts now would take it for a stray.
    own = work.with_name(f"{work.name}.{uuid.uuid4().hex}")
    own.mkdir(parents=True)
    (own / PLAN).write_text(plan)
    try:
        os.rename(own, work)
    except OSError:
        shutil.rmtree(own)
        if _begun(work) != plan:
            raise


def _begun(work: Path) -> str | None:
    """Returns the plan of a working folder; None if there is none."""
    try:
        return (work / PLAN).read_text()
    except FileNotFoundError:
        return None


def finish(
    builder: Builder,
    work: Path,
    target: Path,
    shards: Sequence[Shard],
    tree: Tree,
    texts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Describes a set whose shards are all written, and moves it to its place.

    Args:
        builder: The dataset.
        work: The working folder.
        target: Its place.
        shards: All of them, in the order of their numbers.
        tree: The download.
        texts: {name: content} of further files.

    Returns:
        The manifest.

    Raises:
        DatasetLayoutError: Too many files could not be read.
    """
    notes = [json.loads(note_of(work, builder, shard).read_text()) for shard in shards]
    skipped = [one for note in notes for one in note["skipped"]]
    counted = [one["reason"] for one in skipped if one["key"] not in builder.KNOWN_CORRUPT]
    try:
        total = sum(len(shard.items) for shard in shards)
        refuse_many_skipped(builder.name, tree.path, counted, total)
    except DatasetLayoutError:
        # After a new download the next call tries these again.
        for shard, note in zip(shards, notes, strict=True):
            if note["skipped"]:
                note_of(work, builder, shard).unlink(missing_ok=True)
        raise
    of_split: dict[str, list[dict[str, Any]]] = {}
    for shard, note in zip(shards, notes, strict=True):
        of_split.setdefault(shard.split, []).append(note)
    splits = {
        split: tfds.core.SplitInfo(
            name=split,
            shard_lengths=[note["examples"] for note in written],
            num_bytes=sum(note["bytes"] for note in written),
        )
        for split, written in of_split.items()
    }
    builder.info.set_splits(tfds.core.splits.SplitDict(splits.values()))
    labels = {
        split: sum_labels(note["labels"] for note in written) for split, written in of_split.items()
    }
    content = make_manifest(builder, labels, skipped, tree.outside, notes)
    # Another host may finish at the same moment: every file appears whole, and once.
    with tempfile.TemporaryDirectory(dir=work.parent, prefix=f"{target.name}.finishing.") as own:
        builder.info.write_to_directory(own)
        for name, text in (texts or {}).items():
            (Path(own) / name).write_text(text)
        content["files"] = checksums(Path(own))
        (Path(own) / MANIFEST).write_text(json.dumps(content, indent=1, default=str))
        for place in Path(own).iterdir():
            os.replace(place, work / place.name)
    os.rename(work, target)
    for place in [note_of(target, builder, shard) for shard in shards] + [*target.glob("*.tmp")]:
        place.unlink(missing_ok=True)
    (target / PLAN).unlink(missing_ok=True)
    return content
