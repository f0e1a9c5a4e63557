"""Phantom sets written once to ArrayRecord.

A set is a folder of shards and one listing, `<split>-<count>.json`, that is written last: a set
with a listing is complete. Every shard appears under its name only when it is whole, so that an
interrupted run goes on where it stopped.
"""

import hashlib
import json
import multiprocessing
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from array_record.python import array_record_module

from medinit_jax.core.errors import UsageError
from medinit_jax.data.phantoms import PHANTOMS

SHARD_IMAGES = 500
# Patients of different splits are different: their seeds come from disjoint ranges.
FIRST_SEED = {"train": 0, "val": 1_000_000_000, "test": 2_000_000_000}
_MAX_PATIENTS = 1_000_000_000


class PhantomSet(NamedTuple):
    """Which images a set holds.

    Attributes:
        phantom: Key of `PHANTOMS`.
        split: "train", "val" or "test".
        patients: Number of patients.
        size: Side of the images in pixels.
        masks: Names of the masks that are stored too.
    """

    phantom: str
    split: str
    patients: int
    size: int
    masks: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of images."""
        return self.patients * len(PHANTOMS[self.phantom].eyes)

    @property
    def folder(self) -> str:
        """Name of the folder; it changes with the drawing code's version."""
        masks = "".join(f"-{name}" for name in self.masks)
        return f"{self.phantom}-v{PHANTOMS[self.phantom].version}-{self.size}px{masks}"

    def example(self, index: int) -> dict[str, Any]:
        """Draws image number `index`; the images of a patient follow each other."""
        phantom = PHANTOMS[self.phantom]
        patient, eye = divmod(index, len(phantom.eyes))
        return phantom.render(FIRST_SEED[self.split] + patient, phantom.eyes[eye], self.size)


def encode_record(example: dict[str, Any], masks: tuple[str, ...]) -> bytes:
    """Packs a drawn example: a JSON header, the image as PNG, then each mask as PNG."""
    parts = [cv2.cvtColor(example["image"], cv2.COLOR_RGB2BGR)]
    parts += [example["masks"][name] for name in masks]
    blobs = [cv2.imencode(".png", part)[1].tobytes() for part in parts]
    header = {
        "eye": example["eye"],
        "patient": example["patient"],
        "labels": example["labels"],
        "parts": [[n, len(b)] for n, b in zip(("image", *masks), blobs, strict=True)],
    }
    text = json.dumps(header, sort_keys=True).encode()
    return struct.pack("<I", len(text)) + text + b"".join(blobs)


def decode_record(record: bytes) -> dict[str, Any]:
    """Unpacks `encode_record`: image uint8 (S, S, 3), labels, masks by name, eye, patient."""
    (length,) = struct.unpack_from("<I", record)
    header = json.loads(record[4 : 4 + length])
    place = 4 + length
    arrays = {}
    for name, size in header["parts"]:
        blob = np.frombuffer(record, np.uint8, size, place)
        arrays[name] = cv2.imdecode(blob, cv2.IMREAD_UNCHANGED)
        place += size
    image = cv2.cvtColor(arrays.pop("image"), cv2.COLOR_BGR2RGB)
    return {
        "image": image,
        "eye": header["eye"],
        "patient": header["patient"],
        "labels": header["labels"],
        "masks": arrays,
    }


def write_phantoms(
    data_dir: str | Path,
    wanted: PhantomSet,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a set unless it is there already.

    Args:
        data_dir: Folder for all sets.
        wanted: The set.
        workers: Processes that draw; 0 draws here, None takes one per core for large sets.
        progress: Called with the number of images written and their total.

    Returns:
        The listing, whose keys are those of `wanted` plus `count`, `sha256` (of pixels and labels)
        and `shards`.

    Raises:
        UsageError: Unknown phantom or split, or a number out of range.
    """
    _check(wanted)
    folder = Path(data_dir) / wanted.folder
    listing = folder / f"{wanted.split}-{wanted.count}.json"
    if listing.is_file() and is_complete(listing):
        return listing
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, wanted.count, SHARD_IMAGES)
    jobs = [
        (
            wanted,
            range(start, min(start + SHARD_IMAGES, wanted.count)),
            str(folder / _shard_name(wanted, number, len(starts))),
        )
        for number, start in enumerate(starts)
    ]
    if workers is None:
        workers = min(os.cpu_count() or 1, len(jobs)) if wanted.count >= 1000 else 0
    shards, done = [], 0
    for job, digest in zip(jobs, _run(jobs, workers), strict=True):
        shards.append({"file": Path(job[2]).name, "bytes": os.stat(job[2]).st_size, **digest})
        done += digest["count"]
        if progress is not None:
            progress(done, wanted.count)
    total = hashlib.sha256("".join(s["sha256"] for s in shards).encode()).hexdigest()
    content = {**wanted._asdict(), "count": wanted.count, "sha256": total, "shards": shards}
    _write_atomically(listing, json.dumps(content, indent=1).encode())
    return listing


def _check(wanted: PhantomSet) -> None:
    if wanted.phantom not in PHANTOMS:
        raise UsageError(
            f"There is no phantom {wanted.phantom!r}; set data.name to one of: "
            f"{', '.join(PHANTOMS)}."
        )
    if wanted.split not in FIRST_SEED:
        raise UsageError(
            f"There is no split {wanted.split!r}; use one of: {', '.join(FIRST_SEED)}."
        )
    if not 0 < wanted.patients <= _MAX_PATIENTS:
        raise UsageError(
            f"{wanted.patients} patients in data.patients.{wanted.split} make no set; "
            f"choose 1 to {_MAX_PATIENTS}."
        )
    unknown = set(wanted.masks) - set(PHANTOMS[wanted.phantom].masks)
    if unknown or not 16 <= wanted.size <= 4096:
        raise UsageError(
            f"A {wanted.phantom} phantom has the masks {', '.join(PHANTOMS[wanted.phantom].masks)} "
            f"and sizes from 16 to 4096 pixels, not {wanted.masks} at {wanted.size}; "
            f"change data.masks or data.render_size."
        )


def _shard_name(wanted: PhantomSet, number: int, shards: int) -> str:
    return f"{wanted.split}-{wanted.count}-{number:05d}-of-{shards:05d}.array_record"


def _run(jobs: list[tuple], workers: int) -> Iterator[dict[str, Any]]:
    if not workers:
        yield from map(_write_shard, jobs)
        return
    # Spawned, because a forked copy of a process that runs JAX can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, context, initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        yield from pool.map(_write_shard, jobs)


def _write_shard(job: tuple[PhantomSet, range, str]) -> dict[str, Any]:
    """Draws and writes one shard unless it exists; returns its count and content digest."""
    wanted, numbers, path = job
    if os.path.exists(path):
        digest = _shard_digest(path, len(numbers))
        if digest is not None:
            return digest
    part = f"{path}.{os.getpid()}.part"
    writer = array_record_module.ArrayRecordWriter(part, "group_size:1")
    digest = hashlib.sha256()
    for index in numbers:
        example = wanted.example(index)
        _update(digest, example, wanted.masks)
        writer.write(encode_record(example, wanted.masks))
    writer.close()
    os.replace(part, path)
    return {"count": len(numbers), "sha256": digest.hexdigest()}


def _update(digest: Any, example: dict[str, Any], masks: tuple[str, ...]) -> None:
    """Adds an example's pixels and labels, whatever the encoder made of them."""
    digest.update(example["image"].tobytes())
    for name in masks:
        digest.update(example["masks"][name].tobytes())
    digest.update(json.dumps(example["labels"], sort_keys=True).encode())


def _shard_digest(path: str, count: int) -> dict[str, Any] | None:
    """Reads a shard back; None if it does not hold `count` readable records."""
    try:
        reader = array_record_module.ArrayRecordReader(path)
        records = reader.read_all()
        reader.close()
        digest = hashlib.sha256()
        for record in records:
            example = decode_record(record)
            _update(digest, example, tuple(example["masks"]))
    except (ValueError, RuntimeError, IndexError, struct.error, cv2.error):
        return None
    return {"count": count, "sha256": digest.hexdigest()} if len(records) == count else None


def is_complete(listing: Path) -> bool:
    """Tells whether every shard that a listing names has its recorded length."""
    shards = json.loads(listing.read_text())["shards"]
    places = [listing.parent / shard["file"] for shard in shards]
    return all(
        place.is_file() and place.stat().st_size == shard["bytes"]
        for place, shard in zip(places, shards, strict=True)
    )


def _write_atomically(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    os.replace(part, path)
