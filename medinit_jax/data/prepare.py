"""Prepares a dataset with all cores, so that a kill loses one shard and not the work before it.

What comes out is what tfds' own writer gives, in the same order (examples sorted by the hash of
their key), and is read by tfds. Until everything is there it lies in `<version>.incomplete`, where
every shard has a note of its own beside it.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.core import example_serializer, hashing, naming

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.base import Builder, Item, refuse_many_skipped

SHARD_EXAMPLES = 256
MANIFEST = "prepared.json"
# Called with the number of examples done so far and their total.
Report = Callable[[int, int], None]


class Shard(NamedTuple):
    """A part of a split that one process writes."""

    split: str
    number: int
    of: int
    items: tuple[Item, ...]


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
        UsageError: `host` is not one of `hosts`, or the folder is missing.
    """
    if not 0 <= host < hosts:
        raise UsageError(f"host {host} of {hosts} hosts: count them from 0 to {hosts - 1}.")
    target = Path(builder.data_path)
    if (target / MANIFEST).exists():
        return json.loads((target / MANIFEST).read_text())
    tree = builder.locate(folder)
    splits = builder.checked_items(tree)
    for link in tree.outside:
        logging.warning("%s leads out of %s and is not followed.", link, tree.path)
    shards = [shard for split, items in splits.items() for shard in _cut(split, items)]
    work = target.with_name(f"{target.name}.incomplete")
    _begin(work, _plan(builder, tree.path, shards))
    mine = [shard for shard in shards[host::hosts] if not _note(work, builder, shard).exists()]
    total = sum(len(shard.items) for shard in shards[host::hosts])
    done = total - sum(len(shard.items) for shard in mine)
    report(done, total)
    for count in _write_all(builder, work, mine, workers):
        done += count
        report(done, total)
    if not all(_note(work, builder, shard).exists() for shard in shards):
        return None
    return _finish(builder, work, target, shards, tree.outside)


def _cut(split: str, items: Sequence[Item]) -> list[Shard]:
    """Cuts a split's items, in tfds' order, into shards of nearly equal size."""
    hasher = hashing.Hasher(split)
    ordered = sorted(items, key=lambda item: hasher.hash_key(item.key))
    count = max(1, -(-len(ordered) // SHARD_EXAMPLES))
    bounds = [len(ordered) * part // count for part in range(count + 1)]
    return [
        Shard(split, part, count, tuple(ordered[bounds[part] : bounds[part + 1]]))
        for part in range(count)
    ]


def _plan(builder: Builder, root: Any, shards: Sequence[Shard]) -> str:
    """Returns a digest of all that decides what the shards hold."""
    digest = hashlib.sha256(f"{builder.name} {builder.version} {builder.builder_config}".encode())
    digest.update(f"{root} {builder.on_corrupt}".encode())
    for shard in shards:
        for item in shard.items:
            digest.update(repr(item).encode())
    return digest.hexdigest()


def _begin(work: Path, plan: str) -> None:
    """Makes the working folder, emptied if it was begun for another plan."""
    note = work / "plan.txt"
    if work.exists() and (not note.exists() or note.read_text() != plan):
        logging.warning("%s was begun with other files or options; it is written anew.", work)
        shutil.rmtree(work)
    if not work.exists():
        work.mkdir(parents=True)
        _write_text(note, plan)


def _file(builder: Builder, shard: Shard) -> str:
    template = naming.ShardedFileTemplate(
        data_dir=epath.Path("."),
        dataset_name=builder.name,
        split=shard.split,
        filetype_suffix="array_record",
    )
    return template.sharded_filepath(shard_index=shard.number, num_shards=shard.of).name


def _note(work: Path, builder: Builder, shard: Shard) -> Path:
    return work / f"{_file(builder, shard)}.json"


def _write_all(
    builder: Builder, work: Path, shards: Sequence[Shard], workers: int | None
) -> Iterator[int]:
    """Writes shards and yields the number of examples of each when it is done."""
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers == 0 or len(shards) <= 1:
        for shard in shards:
            yield write_shard(builder, work, shard)
        return
    # Forked processes would inherit the threads of JAX.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(shards)), mp_context=context
    ) as pool:
        pending = [pool.submit(write_shard, builder, work, shard) for shard in shards]
        try:
            for finished in concurrent.futures.as_completed(pending):
                yield finished.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write_shard(builder: Builder, work: Path, shard: Shard) -> int:
    """Writes one shard, then its note.

    Returns:
        The number of its items.
    """
    features = builder.info.features
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    place = work / _file(builder, shard)
    partial = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    skipped, count, size = [], 0, 0
    # One record per group: any record can be read without its neighbors.
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    for item in shard.items:
        example = builder.example_or_reason(item)
        if isinstance(example, str):
            skipped.append({"key": item.key, "reason": example})
            continue
        record = serializer.serialize_example(features.encode_example(example))
        writer.write(record)
        count, size = count + 1, size + len(record)
    writer.close()
    digest = checksum(partial)
    os.replace(partial, place)
    note = {"file": place.name, "examples": count, "bytes": size, "sha256": digest}
    _write_text(_note(work, builder, shard), json.dumps({**note, "skipped": skipped}))
    return len(shard.items)


def _finish(
    builder: Builder, work: Path, target: Path, shards: Sequence[Shard], outside: list[str]
) -> dict[str, Any]:
    notes = [json.loads(_note(work, builder, shard).read_text()) for shard in shards]
    skipped = [one for note in notes for one in note["skipped"]]
    counted = sum(one["key"] not in builder.KNOWN_CORRUPT for one in skipped)
    refuse_many_skipped(builder.name, counted, sum(len(shard.items) for shard in shards))
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
    builder.info.write_to_directory(work)
    manifest = {
        "dataset": builder.name,
        "config": dataclasses.asdict(builder.builder_config),
        "version": str(builder.version),
        "license": builder.LICENSE,
        "splits": {split: info.num_examples for split, info in splits.items()},
        "skipped": skipped,
        "ignored": builder.ignored,
        "links_not_followed": outside,
        "shards": [
            {name: note[name] for name in ("file", "examples", "bytes", "sha256")} for note in notes
        ],
    }
    _write_text(work / MANIFEST, json.dumps(manifest, indent=1, default=str))
    os.replace(work, target)
    for shard in shards:
        _note(target, builder, shard).unlink()
    (target / "plan.txt").unlink()
    return manifest


def checksum(place: Path) -> str:
    """Returns the SHA-256 of a file."""
    with place.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_text(place: Path, text: str) -> None:
    """Writes a file that is either there whole or not at all."""
    partial = place.with_name(f"{place.name}.{os.getpid()}.tmp")
    partial.write_text(text)
    os.replace(partial, place)
