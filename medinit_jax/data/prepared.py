"""A split of a prepared dataset as a source."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.decode import Fit, decode, fit_square
from medinit_jax.data.manifest import read_manifest
from medinit_jax.data.readable import raw_record
from medinit_jax.data.tasks import TASKS

# The names that sets give their splits, by the name that training gives them.
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
_SIGNS = {"left": -1, "right": 1, "unknown": 0}


class PreparedSource:
    """A split of a prepared dataset.

    Attributes:
        label: The feature that is the label; None if there is none.
    """

    def __init__(self, builder: Builder, split: str, size: int, fit: Fit = "crop", label: str = ""):
        """Opens a split.

        Args:
            builder: The dataset, its config and data_dir.
            split: As the set names it.
            size: Side of the images that this source returns, in pixels.
            fit: How an image becomes square, see `decode.fit_square`.
            label: The feature that becomes `label`, a class or a whole number; "" takes `label` if
                the set has it.

        Raises:
            UsageError: The set is not prepared, is cut short, has no such split, or no such label.
        """
        self._manifest = manifest_of(builder)
        self._name = f"{builder.name}/{builder.builder_config.name}"
        self._split, self._size = split, size
        self._license = builder.license_text()
        self._fit: Fit = fit
        if not self._manifest["splits"].get(split):
            have = ", ".join(name for name, count in self._manifest["splits"].items() if count)
            raise UsageError(f"{self._name} has no split {split!r}; it has: {have}.")
        self._shards = [
            shard for shard in self._manifest["shards"] if f"-{split}.array_record" in shard["file"]
        ]
        refuse_cut_short(Path(builder.data_path), self._shards, self._name)
        features = self._known = builder.info.features
        if not isinstance(features["image"], tfds.features.Image):
            raise UsageError(
                f"{self._name} stores numbers that are no 8-bit images; set data.name to another "
                f"config: `python -m medinit_jax.data info {builder.name}` lists them."
            )
        self.label = label_feature(builder, label)
        # What must stay in one part, where a table names groups; else the patient.
        who = [name for name in ("group", "patient_id", "image_id") if name in features]
        names = ["image", "eye", *who, *([self.label] if self.label else [])]
        # Only these are parsed: a record may hold masks that are dear to decode.
        self._features = tfds.features.FeaturesDict({name: features[name] for name in names})
        self._who = tfds.features.FeaturesDict({name: features[name] for name in who})
        self._eyes = [_SIGNS[name] for name in features["eye"].names]
        self._records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

    def __len__(self) -> int:
        """Returns the number of images."""
        return self._manifest["splits"][self._split]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns image uint8 (size, size, 3), eye, patient, and label (-1: unlabelled) if any."""
        stored = self._features.deserialize_example_np(
            self._record(int(index)), decoders={"image": tfds.decode.SkipDecoding()}
        )
        image = decode(stored["image"], at_least=0 if self._fit == "fov" else self._size)
        example = {
            "image": fit_square(image, self._size, self._fit),
            "eye": self._eyes[int(stored["eye"])],
            "patient": self._patient(stored),
        }
        if self.label:
            example["label"] = int(stored[self.label])
        return example

    @functools.cached_property
    def patients(self) -> list[str]:
        """The group or patient of every image, read without decoding images."""
        return [
            self._patient(self._who.deserialize_example_np(self._record(index)))
            for index in range(len(self))
        ]

    def columns(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """Returns features of every image, read without decoding images.

        Args:
            names: Features that are a text or a number each.

        Returns:
            {name: str or int of every image}; a class is its number, -1 where it is unknown.
        """
        wanted = tfds.features.FeaturesDict({name: self._known[name] for name in names})
        found: dict[str, list[Any]] = {name: [] for name in names}
        for index in range(len(self)):
            row = wanted.deserialize_example_np(self._record(index))
            for name, value in row.items():
                found[name].append(value.decode() if isinstance(value, bytes) else int(value))
        return found

    def _record(self, index: int) -> bytes:
        return raw_record(self._records, index, f"{self._name}/{self._split}")

    def _patient(self, stored: dict[str, Any]) -> str:
        """Returns group or patient; an image whose patient is unknown is one of its own."""
        known = (stored.get("group") or stored["patient_id"]).decode()
        return known or f"{self._split}/{stored['image_id'].decode()}"

    def describe(self) -> dict[str, Any]:
        """Returns source, count, a sha256 over those of the split's shards, license and label."""
        digest = hashlib.sha256()
        for shard in self._shards:
            digest.update(shard["sha256"].encode())
        return {
            "source": f"prepared:{self._name}/{self._split}",
            "count": len(self),
            "sha256": digest.hexdigest(),
            "license": self._license,
            "label": self.label,
        }


def label_feature(builder: Builder, label: str = "") -> str | None:
    """Returns the feature that is the label, a class or a whole number.

    Args:
        builder: The dataset; it need not be prepared.
        label: Name of a feature; "" takes `label` if the set has it.

    Returns:
        Its name; None if there is none.

    Raises:
        UsageError: There is no such label.
    """
    possible = [
        name
        for name, feature in builder.info.features.items()
        if name != "eye" and feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)
    ]
    if label and label not in possible:
        raise UsageError(
            f"{builder.name}/{builder.builder_config.name} has no label {label!r}; set data.label "
            f"to one of: {', '.join(possible) or 'none'}."
        )
    return label or ("label" if "label" in possible else None)


def manifest_of(builder: Builder) -> dict[str, Any]:
    """Returns the manifest of a prepared set.

    Raises:
        UsageError: It is not prepared.
    """
    manifest = read_manifest(builder.data_path)
    if manifest is None:
        name = f"{builder.name}/{builder.builder_config.name}"
        raise UsageError(
            f"{name} is not prepared in {builder.data_path}; `python -m medinit_jax.data info "
            f"{name}` says how to, or set data.data_dir to where it is."
        )
    return manifest


def refuse_cut_short(folder: Path, shards: Sequence[Mapping[str, Any]], name: str) -> None:
    """Raises UsageError if shards of a prepared set are missing or have not their size.

    Args:
        folder: The set's.
        shards: As the manifest has them.
        name: The set's name and config.
    """
    for shard in shards:
        place = folder / shard["file"]
        # Manifests of earlier versions do not tell the size.
        if not place.is_file() or shard.get("file_bytes") not in (None, place.stat().st_size):
            raise UsageError(
                f"{place} is missing or cut short; delete the folder {folder} and prepare "
                f"{name} again (phantoms are drawn anew by themselves)."
            )


def default_label(name: str) -> str:
    """Returns the feature that a task predicts, of several the first; "" where it is a mask."""
    task = TASKS.get(name)
    return "" if task is None or task.kind == "segmentation" else task.labels[0]
