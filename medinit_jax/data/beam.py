"""Prepares a dataset as tfds' own Apache Beam pipeline, on as many machines as a runner has.

The records are those of `prepare`; how many shards they lie in is tfds' choice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.base import Builder, refuse_many_skipped
from medinit_jax.data.builders.config import Item
from medinit_jax.data.manifest import MANIFEST, LabelCounts, make_manifest
from medinit_jax.data.shards import checksum, checksums, write_text

_SKIPPED = "medinit_skipped"


def prepare_with_beam(
    builder: Builder, folder: epath.PathLike, options: Sequence[str] = ("--runner=DirectRunner",)
) -> dict[str, Any]:
    """Writes a dataset to `builder.data_path` with Apache Beam.

    Args:
        builder: The dataset and its config, made with `beam=True`.
        folder: The user's download, under a path that all workers see.
        options: Beam's pipeline options, as on a command line.

    Returns:
        The manifest.

    Raises:
        DatasetLayoutError: Something is wrong with the download.
        UsageError: Beam is not installed, or there is something at `builder.data_path` already.
    """
    beam = _beam()
    target = Path(builder.data_path)
    if target.exists():
        raise UsageError(f"{target} exists; delete it, or name another folder with --data-dir.")
    tree = builder.locate(folder)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=str(tree.path),
            try_download_gcs=False,
            beam_options=beam.options.pipeline_options.PipelineOptions(list(options)),
        )
    )
    keys = _skipped_keys(beam, builder.pipeline_result)
    written = sum(split.num_examples for split in builder.info.splits.values())
    counted = [key for key in keys if key not in builder.KNOWN_CORRUPT]
    try:
        refuse_many_skipped(builder.name, tree.path, counted, written + len(keys))
    except Exception:
        shutil.rmtree(target)
        raise
    shards, labels = [], {}
    for split, info in builder.info.splits.items():
        counts = LabelCounts(builder.info)
        for place in map(Path, info.filepaths):
            shards.append(_described(place, builder, counts))
        labels[split] = counts.counts
    skipped = [{"key": key, "reason": "see the log of the Beam workers"} for key in keys]
    content = make_manifest(builder, labels, skipped, builder.outside, shards)
    content["files"] = checksums(target)
    write_text(target / MANIFEST, json.dumps(content, indent=1, default=str))
    return content


def examples(builder: Builder, items: Sequence[Item]) -> Any:
    """Returns the PTransform that decodes items, to (key, example)."""
    beam = _beam()

    def decode(item: Item) -> Iterator[tuple[str, dict[str, Any]]]:
        example = builder.example_or_reason(item)
        if isinstance(example, str):
            # A counter by the file's name is what comes back from a worker beside the records.
            beam.metrics.Metrics.counter(_SKIPPED, item.key).inc()
        else:
            yield item.key, example

    return beam.Create(items) | beam.FlatMap(decode)


def _beam() -> Any:
    try:
        import apache_beam
    except ImportError as error:
        raise UsageError(
            "Apache Beam is not installed; add it with: pip install medinit_jax[beam]"
        ) from error
    return apache_beam


def _skipped_keys(beam: Any, result: Any) -> list[str]:
    wanted = beam.metrics.metric.MetricsFilter().with_namespace(_SKIPPED)
    return sorted({one.key.metric.name for one in result.metrics().query(wanted)["counters"]})


def _described(place: Path, builder: Builder, counts: LabelCounts) -> dict[str, Any]:
    """Returns what a manifest holds of a shard, and counts its labels."""
    labels = tfds.features.FeaturesDict(
        {name: builder.info.features[name] for name in counts.features}
    )
    reader = array_record_module.ArrayRecordReader(str(place))
    size, number = 0, reader.num_records()
    for index in range(number):
        record = reader.read([index])[0]
        size += len(record)
        counts.add(labels.deserialize_example_np(record))
    reader.close()
    found = {"file": place.name, "examples": number, "bytes": size, "sha256": checksum(place)}
    return {**found, "file_bytes": place.stat().st_size}
