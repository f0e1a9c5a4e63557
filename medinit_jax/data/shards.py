"""The parts of a split: cut, and written by as many processes as there are cores.

A shard appears under its name when it is whole, and then its note, a JSON file beside it.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.core import example_serializer, hashing, naming

from medinit_jax.core.errors import UsageError
from medinit_jax.core.interrupt import ctrl_c_kept
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.config import Item
from medinit_jax.data.manifest import MANIFEST, LabelCounts

SHARD_EXAMPLES = 256
# Called with the number of examples done so far and their total.
Report = Callable[[int, int], None]


class Shard(NamedTuple):
    """A part of a split that one process writes."""

    split: str
    number: int
    of: int
    items: tuple[Item, ...]


def cut(split: str, items: Sequence[Item]) -> list[Shard]:
    """Cuts a split's items, in tfds' order, into shards of nearly equal size."""
    hasher = hashing.Hasher(split)
    ordered = sorted(items, key=lambda item: hasher.hash_key(item.key))
    count = max(1, -(-len(ordered) // SHARD_EXAMPLES))
    bounds = [len(ordered) * part // count for part in range(count + 1)]
    return [
        Shard(split, part, count, tuple(ordered[bounds[part] : bounds[part + 1]]))
        for part in range(count)
    ]


def file_name(builder: Builder, shard: Shard) -> str:
    """Returns the name of a shard's file, as tfds has it."""
    template = naming.ShardedFileTemplate(
        data_dir=epath.Path("."),
        dataset_name=builder.name,
        split=shard.split,
        filetype_suffix="array_record",
    )
    return template.sharded_filepath(shard_index=shard.number, num_shards=shard.of).name


def note_of(work: Path, builder: Builder, shard: Shard) -> Path:
    """Returns the place of a shard's note."""
    return work / f"{file_name(builder, shard)}.json"


def write_shards(
    builder: Builder, work: Path, shards: Sequence[Shard], workers: int | None, report: Report
) -> None:
    """Writes those of the shards that have no note yet.

    Args:
        builder: The dataset.
        work: The folder.
        shards: What to write.
        workers: Processes; None: as many as there are cores; 0: this one.
        report: Told how far it is.
    """
    left = [shard for shard in shards if not note_of(work, builder, shard).exists()]
    total = sum(len(shard.items) for shard in shards)
    done = total - sum(len(shard.items) for shard in left)
    report(done, total)
    workers = min((os.cpu_count() or 1) if workers is None else workers, len(left))
    if workers <= 1:
        for shard in left:
            write_shard(builder, work, shard, lambda count, done=done: report(done + count, total))
            done += len(shard.items)
        return
    # Forked processes would inherit the threads of JAX.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    others = multiprocessing.active_children()
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin_worker, initargs=(counter,)
    ) as pool:
        try:
            with ctrl_c_kept():
                pending = {pool.submit(_write_in_worker, builder, work, shard) for shard in left}
            while pending:
                finished, pending = concurrent.futures.wait(
                    pending, timeout=0.5, return_when=concurrent.futures.FIRST_COMPLETED
                )
                for one in finished:
                    one.result()
                report(done + counter.value, total)
        except concurrent.futures.process.BrokenProcessPool as error:
            raise UsageError(
                "A process that prepares was killed, perhaps for want of memory; run "
                f"`python -m medinit_jax.data prepare {builder.name}/{builder.builder_config.name} "
                f"--workers N` with fewer than {workers}: it goes on where it stopped."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            # Otherwise the shards in hand, of many large images, would be waited for.
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            raise


# Counts the examples that all processes have written.
_counter: Any = None


def _begin_worker(counter: Any) -> None:
    global _counter
    _counter = counter
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process when the one that started it was killed: nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _write_in_worker(builder: Builder, work: Path, shard: Shard) -> None:
    before = 0

    def report(count: int) -> None:
        nonlocal before
        with _counter.get_lock():
            _counter.value += count - before
        before = count

    write_shard(builder, work, shard, report)


def write_shard(
    builder: Builder, work: Path, shard: Shard, report: Callable[[int], None] = lambda done: None
) -> None:
    """Writes one shard, then its note.

    Args:
        builder: The dataset.
        work: The folder.
        shard: What to write.
        report: Called with the number of items that are done.
    """
    features = builder.info.features
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    place = work / file_name(builder, shard)
    partial = _partial(place)
    skipped, count, size = [], 0, 0
    labels = LabelCounts(builder.info)
    try:
        # One record per group: any record can be read without its neighbors.
        with _explained(place):
            writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
        for number, item in enumerate(shard.items, start=1):
            example = builder.example_or_reason(item)
            if isinstance(example, str):
                skipped.append({"key": item.key, "reason": example})
            else:
                encoded = features.encode_example(example)
                labels.add(encoded)
                # The order of a map's fields is otherwise another one in every process.
                record = serializer.get_tf_example(encoded).SerializeToString(deterministic=True)
                with _explained(place):
                    writer.write(record)
                count, size = count + 1, size + len(record)
            report(number)
        with _explained(place):
            writer.close()
        digest, stored = checksum(partial), partial.stat().st_size
        os.replace(partial, place)
    finally:
        partial.unlink(missing_ok=True)
    note = {"file": place.name, "examples": count, "bytes": size, "sha256": digest}
    note = {**note, "file_bytes": stored, "labels": labels.counts, "skipped": skipped}
    write_text(note_of(work, builder, shard), json.dumps(note))


@contextlib.contextmanager
def _explained(place: Path) -> Iterator[None]:
    """Makes an OSError of what array_record raises, as on a full disk."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].partition(";")[0]
        full = shutil.disk_usage(place.parent).free < 1 << 20 or "No space left" in reason
        raise OSError(errno.ENOSPC if full else errno.EIO, reason, str(place)) from error


def checksum(place: Path) -> str:
    """Returns the SHA-256 of a file."""
    with place.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """Returns {name: SHA-256} of the files that describe a set: all but shards and manifest."""
    return {
        place.name: checksum(place)
        for place in sorted(folder.iterdir())
        if place.name != MANIFEST and ".array_record-" not in place.name
    }


def write_text(place: Path, text: str) -> None:
    """Writes a file that is either there whole or not at all."""
    partial = _partial(place)
    partial.write_text(text)
    os.replace(partial, place)


def _partial(place: Path) -> Path:
    # Process numbers of two hosts can be the same.
    return place.with_name(f"{place.name}.{uuid.uuid4().hex}.tmp")
