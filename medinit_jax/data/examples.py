"""Labeled images of one split of a prepared set, as fine-tuning reads them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.decode import decode, decode_mask
from medinit_jax.data.prepared import PreparedSource

# Pixels of a mask that do not count: outside of the image, or of the field of view.
OUTSIDE = 255
_SCALARS = ("eye", "patient_id", "image_id", "group")


class Examples:
    """Images with labels or masks, by number; images are kept in memory as far as they fit.

    Attributes:
        labels: {feature: int (n,) or (n, classes)}, read without decoding images.
        patients: Group, else patient, else the image's own name, of every image.
        ids: Name of every image.
    """

    def __init__(
        self,
        builder: Builder,
        split: str,
        labels: Sequence[str],
        keep: Callable[[np.ndarray], np.ndarray],
        cache_mb: float = 1024.0,
    ):
        """Opens a split.

        Args:
            builder: The prepared set.
            split: As the set names it.
            labels: Features that are read as labels.
            keep: What becomes of a decoded uint8 (H, W, 3) image before it is kept in memory.
            cache_mb: Megabytes of pixels that are kept.

        Raises:
            UsageError: The set is not prepared, or has no such split.
        """
        # Checks the manifest, the shards and the split.
        checked = PreparedSource(builder, split, 16)
        self._origin, self._keep, self._cache_mb = checked.describe(), keep, cache_mb
        features = builder.info.features
        self._features = features
        self._records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        self._name = f"{builder.name}/{builder.builder_config.name} {split}"
        names = [name for name in (*_SCALARS, *labels) if name in features]
        scalars = tfds.features.FeaturesDict({name: features[name] for name in names})
        rows = [
            scalars.deserialize_example_np(self._records[index]) for index in range(len(checked))
        ]
        self.labels = {name: np.array([row[name] for row in rows], np.int32) for name in labels}
        self.ids = [_text(row.get("image_id")) or f"{split}/{i}" for i, row in enumerate(rows)]
        self.patients = [
            _text(row.get("group")) or _text(row.get("patient_id")) or name
            for row, name in zip(rows, self.ids, strict=True)
        ]
        self._numbers = np.arange(len(rows))
        self._cache: dict[int, dict[str, np.ndarray]] = {}
        self._cached_bytes = [0]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._numbers)

    def subset(self, indices: np.ndarray, name: str) -> Examples:
        """Returns some of the images, which share the memory of this one.

        Args:
            indices: Numbers of the images.
            name: Of the part, for the record.
        """
        part = copy.copy(self)
        indices = np.asarray(indices, np.int64)
        part._numbers = self._numbers[indices]
        part.labels = {key: values[indices] for key, values in self.labels.items()}
        part.ids = [self.ids[i] for i in indices]
        part.patients = [self.patients[i] for i in indices]
        part._origin = {
            **self._origin, "source": f"{self._origin['source']} [{name}]", "count": len(indices)
        }  # fmt: skip
        return part

    def image(self, index: int) -> np.ndarray:
        """Returns uint8 (H, W, 3) as `keep` left it."""
        return self._read(index)["image"]

    def mask(self, index: int) -> np.ndarray:
        """Returns the mask's class numbers, uint8 (H, W), of the size of the stored image."""
        return self._read(index)["mask"]

    def fov(self, index: int) -> np.ndarray | None:
        """Returns the field of view, bool (H, W), None if the set has none."""
        return self._read(index).get("fov")

    def size(self, index: int) -> tuple[int, int]:
        """Returns height and width of the stored image."""
        height, width = self._read(index)["size"]
        return int(height), int(width)

    def regions(self, index: int) -> np.ndarray:
        """Returns boxes of findings, float32 (k, 4): top, left, bottom, right in 0..1."""
        if "boxes" not in self._features:
            return np.zeros((0, 4), np.float32)
        return np.asarray(self._parse(index, ("boxes",))["boxes"], np.float32).reshape(-1, 4)

    def describe(self) -> dict[str, Any]:
        """Returns source, count and sha256 for the record of a run."""
        return self._origin

    def _read(self, index: int) -> dict[str, np.ndarray]:
        number = int(self._numbers[index])
        held = self._cache.get(number)
        if held is not None:
            return held
        names = [name for name in ("image", "mask", "fov") if name in self._features]
        stored = self._parse(index, names, skip=names)
        image = decode(stored["image"])
        read = {"image": self._keep(image), "size": np.array(image.shape[:2])}
        if "mask" in stored:
            read["mask"] = self._checked(index, decode_mask(stored["mask"]), image)
        if "fov" in stored:
            read["fov"] = self._checked(index, decode_mask(stored["fov"]), image) > 0
        size = sum(array.nbytes for array in read.values())
        if self._cached_bytes[0] + size <= self._cache_mb * 1e6:
            self._cached_bytes[0] += size
            self._cache[number] = read
        return read

    def _checked(self, index: int, mask: np.ndarray, image: np.ndarray) -> np.ndarray:
        if mask.shape != image.shape[:2]:
            raise UsageError(
                f"The mask of {self.ids[index]} in {self._name} has {mask.shape[0]} x "
                f"{mask.shape[1]} pixels and its image {image.shape[0]} x {image.shape[1]}; "
                "prepare the set from files that fit each other."
            )
        return mask

    def _parse(self, index: int, names: Sequence[str], skip: Sequence[str] = ()) -> dict[str, Any]:
        features = _some(self._features, tuple(names))
        decoders = {name: tfds.decode.SkipDecoding() for name in skip}
        record = self._records[int(self._numbers[index])]
        return features.deserialize_example_np(record, decoders=decoders)


@functools.lru_cache(maxsize=16)
def _some(features: Any, names: tuple[str, ...]) -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict({name: features[name] for name in names})


def _text(value: Any) -> str:
    return "" if value is None else value.decode()
