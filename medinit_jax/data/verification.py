"""Reads a prepared set completely and compares it with what was recorded of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.manifest import MANIFEST, read_manifest
from medinit_jax.data.shards import Report, checksum, checksums


def verify(
    builder: Builder, workers: int | None = None, report: Report = lambda done, total: None
) -> list[str]:
    """Checks the sha256 of every file, decodes every record, and compares all counts.

    Args:
        builder: The dataset and its config.
        workers: Threads; None: as many as there are cores.
        report: Told how many records were read.

    Returns:
        What is wrong, a sentence each.

    Raises:
        UsageError: The set is not prepared.
    """
    folder = Path(builder.data_path)
    manifest = read_manifest(folder)
    if manifest is None:
        raise UsageError(
            f"{folder} is not prepared; run: python -m medinit_jax.data prepare "
            f"{builder.name}/{builder.builder_config.name} --from DIR"
        )
    shards = manifest["shards"]
    problems = _count_problems(builder, manifest)
    try:
        tfds.builder_from_directory(folder)
    except Exception as error:
        problems.append(f"features.json cannot be read ({_first_line(error)}).")
    problems += _file_problems(folder, manifest)
    total, done = sum(shard["examples"] for shard in shards), 0
    report(0, total)

    def check(shard: dict[str, Any]) -> list[str]:
        def step() -> None:
            nonlocal done
            done += 1
            report(min(done, total), total)

        return _shard_problems(folder, shard, builder.info.features, step)

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for found in pool.map(check, shards):
            problems += found
    return problems


def unchecked_files(builder: Builder) -> list[str]:
    """Returns the files of a set of which an older version recorded no sha256."""
    manifest = read_manifest(builder.data_path)
    if manifest is None or "files" in manifest:
        return []
    return [*checksums(Path(builder.data_path))]


def _file_problems(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Compares what lies in the folder with what was recorded; shards are read later."""
    recorded = manifest.get("files", {})
    problems = []
    for name, digest in recorded.items():
        place = folder / name
        if not place.is_file():
            problems.append(f"{name} is missing.")
        elif (found := checksum(place)) != digest:
            problems.append(f"{name} has the sha256 {found}, recorded is {digest}.")
    known = {MANIFEST, *recorded, *(shard["file"] for shard in manifest["shards"])}
    for place in sorted(folder.iterdir()):
        if place.name in known or place.name.startswith("."):
            continue
        if ".array_record" in place.name:
            problems.append(f"{place.name} is not among the recorded shards.")
        elif "files" in manifest:
            problems.append(f"{place.name} is not among the recorded files.")
    return problems


def _count_problems(builder: Builder, manifest: dict[str, Any]) -> list[str]:
    """Compares the manifest's counts with themselves and with those that tfds reads."""
    problems = []
    stored = {name: split.num_examples for name, split in builder.info.splits.items()}
    for split in sorted({*stored, *manifest["splits"]}):
        recorded = manifest["splits"].get(split, 0)
        if stored.get(split, 0) != recorded:
            problems.append(
                f"{split} has {stored.get(split, 0)} examples in dataset_info.json and {recorded} "
                f"in the manifest."
            )
    total = sum(shard["examples"] for shard in manifest["shards"])
    if total != sum(manifest["splits"].values()):
        problems.append(
            f"The manifest's shards hold {total} examples, its splits "
            f"{sum(manifest['splits'].values())}."
        )
    return problems


def _shard_problems(
    folder: Path, shard: dict[str, Any], features: Any, step: Callable[[], None]
) -> list[str]:
    name, place = shard["file"], folder / shard["file"]
    if not place.is_file():
        return [f"{name} is missing."]
    problems = []
    found = checksum(place)
    if found != shard["sha256"]:
        problems.append(f"{name} has the sha256 {found}, recorded is {shard['sha256']}.")
    try:
        reader = array_record_module.ArrayRecordReader(str(place))
        count = reader.num_records()
        if not reader.ok():
            # It says why when it is closed.
            reader.close()
    except Exception as error:
        # What a damaged shard raises depends on the damage: it can be anything.
        return [*problems, f"{name} cannot be opened ({_first_line(error)})."]
    if count != shard["examples"]:
        problems.append(f"{name} holds {count} records, recorded are {shard['examples']}.")
    for index in range(count):
        try:
            features.deserialize_example_np(reader.read([index])[0])
        except Exception as error:
            problems.append(f"Record {index} of {name} cannot be read ({_first_line(error)}).")
        step()
    return problems


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
