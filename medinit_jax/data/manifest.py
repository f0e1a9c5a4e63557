"""What is recorded of a prepared set: `prepared.json` in its folder, written last."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.core.errors import UsageError

if TYPE_CHECKING:
    from medinit_jax.data.builders.base import Builder

MANIFEST = "prepared.json"
UNLABELLED = "unlabelled"


def read_manifest(target: epath.PathLike) -> dict[str, Any] | None:
    """Returns the manifest of a prepared set; None if it is not (completely) there.

    Raises:
        UsageError: It is damaged.
    """
    place = Path(target) / MANIFEST
    if not place.is_file():
        return None
    try:
        return json.loads(place.read_text())
    except ValueError as error:
        raise UsageError(
            f"{place} is damaged ({error}); delete its folder and prepare the set again."
        ) from error


def refuse_other_options(builder: Builder) -> None:
    """Keeps a set that a config of the same name made from being taken for the builder's.

    Raises:
        UsageError: It was prepared with other options, or is damaged.
    """
    manifest = read_manifest(builder.data_path)
    if manifest is None:
        return
    # What tfds has of a config, as its description, makes no other set.
    common = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
    own = json.loads(json.dumps(dataclasses.asdict(builder.builder_config), default=str))
    made = manifest["config"]
    other = sorted(key for key in own if key not in common and made.get(key) != own[key])
    if other:
        raise UsageError(
            f"{builder.data_path} was prepared with other options of the same name "
            f"({', '.join(other)}); delete it, or give these options a name of their own."
        )


def earlier_manifest(builder: Builder) -> dict[str, Any] | None:
    """Returns the manifest of what was prepared before; None if that is nothing.

    Raises:
        UsageError: It is damaged, or holds what the builder's checks would refuse.
    """
    manifest = read_manifest(builder.data_path)
    if manifest is None:
        return None
    accepted = manifest.get("accepted", [])
    if accepted and builder.strict_counts:
        raise UsageError(
            f"{builder.data_path} was prepared with --any-count and is not the published set "
            f"({'; '.join(accepted[:3])}); delete it to prepare it anew, or take it with "
            f"--any-count."
        )
    keys = [one["key"] for one in manifest["skipped"] if one["key"] not in builder.KNOWN_CORRUPT]
    if keys and builder.on_corrupt != "skip":
        raise UsageError(
            f"{builder.data_path} was prepared with --on-corrupt=skip and lacks {len(keys)} files "
            f"that could not be read ({', '.join(keys[:3])}); delete it to prepare it anew, or "
            f"take it with --on-corrupt=skip."
        )
    return manifest


def make_manifest(
    builder: Builder,
    labels: dict[str, dict[str, dict[str, int]]],
    skipped: list[dict[str, str]],
    outside: list[str],
    shards: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Returns what is recorded of a prepared set, see `MANIFEST`; `files` comes when they exist.

    Args:
        builder: The dataset, its splits known.
        labels: {split: {feature: {class: examples}}}.
        skipped: Key and reason of files that could not be read.
        outside: Links that were not followed.
        shards: File, examples, bytes of their records, sha256 and bytes of the file of each.
    """
    return {
        "dataset": builder.name,
        "config": dataclasses.asdict(builder.builder_config),
        "version": str(builder.version),
        "license": builder.license_text(),
        "splits": {split: info.num_examples for split, info in builder.info.splits.items()},
        "labels": labels,
        "skipped": skipped,
        "accepted": builder.accepted,
        "ignored": builder.ignored,
        "notes": builder.notes,
        "links_not_followed": outside,
        "shards": [
            {name: shard[name] for name in ("file", "examples", "bytes", "sha256", "file_bytes")}
            for shard in shards
        ],
    }


class LabelCounts:
    """How often each class occurs, for every feature that is a class or a vector of labels.

    Attributes:
        counts: {feature: {class: examples}}; of a vector, whose name holds "labels", {place:
            examples that are positive there}; of the labels of a table {label: {class: examples}}.
            -1 counts as `UNLABELLED`.
        features: Names of the features that are counted.
    """

    def __init__(self, info: tfds.core.DatasetInfo):
        """Counts nothing yet.

        Args:
            info: Of the set: its features, and the classes of a table's labels, if any.
        """
        features: Any = info.features
        self._names: dict[str, list[str]] = {}
        # The labels of a table, by their place in the feature `labels`.
        self._columns: list[str] = []
        for name, feature in features.items():
            if isinstance(feature, tfds.features.ClassLabel):
                self._names[name] = list(feature.names)
            elif "labels" in name and len(feature.shape) == 1 and feature.shape[0]:
                self._names[name] = [str(place) for place in range(feature.shape[0])]
            elif name == "labels" and feature.shape == (None,):
                self._columns = list((info.metadata or {}).get("classes", {}))
        self.features = [*self._names, *(["labels"] if self._columns else [])]
        self.counts: dict[str, dict[str, int]] = {
            name: dict.fromkeys(names, 0) for name, names in self._names.items()
        }
        for column in self._columns:
            classes = (info.metadata or {})["classes"][column]
            self.counts[_of_column(column)] = dict.fromkeys(classes, 0)

    def add(self, encoded: Mapping[str, Any]) -> None:
        """Counts an example, its classes as numbers."""
        for name, names in self._names.items():
            counts, value = self.counts[name], np.asarray(encoded[name])
            if (value < 0).any():
                counts[UNLABELLED] = counts.get(UNLABELLED, 0) + 1
            else:
                for place in [int(value)] if value.ndim == 0 else np.flatnonzero(value > 0):
                    counts[names[place]] += 1
        for place, column in enumerate(self._columns):
            counts, number = self.counts[_of_column(column)], int(encoded["labels"][place])
            name = UNLABELLED if number < 0 else list(counts)[number]
            counts[name] = counts.get(name, 0) + 1


def _of_column(column: str) -> str:
    """Returns the name of a table's label among features, of which one may be named like it."""
    return f"labels: {column}"


def sum_labels(parts: Iterable[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """Adds up the counts of several shards."""
    total: dict[str, Counter[str]] = {}
    for part in parts:
        for name, counts in part.items():
            total.setdefault(name, Counter()).update(counts)
    return {name: dict(counts) for name, counts in total.items()}
