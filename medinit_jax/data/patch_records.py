"""The records of a prepared set of patches: both images of a pair by number."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.retinal_swap import SPLIT
from medinit_jax.data.decode import decode
from medinit_jax.data.prepared import manifest_of, refuse_cut_short
from medinit_jax.data.readable import raw_record

_IMAGES = ("image", "image_right")


class PatchRecords:
    """Name and images of pairs, without their labels, which lie in a table beside them."""

    def __init__(self, builder: Builder):
        """Opens a set.

        Args:
            builder: A `RetinalSwap`, its config and data_dir.

        Raises:
            UsageError: It is not prepared, or cut short.
        """
        manifest = manifest_of(builder)
        self.name = f"{builder.name}/{builder.builder_config.name}"
        self.folder = Path(builder.data_path)
        refuse_cut_short(self.folder, manifest["shards"], self.name)
        self._count = manifest["splits"][SPLIT]
        self._checksums = [shard["sha256"] for shard in manifest["shards"]]
        self._license = builder.license_text()
        features = builder.info.features
        # Only these are parsed.
        self._features = tfds.features.FeaturesDict(
            {name: features[name] for name in (*_IMAGES, "image_id")}
        )
        self._records = builder.as_data_source(
            SPLIT, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return self._count

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Returns the left patch's name, and both patches, uint8 (S, S, 3)."""
        stored = self._features.deserialize_example_np(
            raw_record(self._records, int(index), self.name),
            decoders=dict.fromkeys(_IMAGES, tfds.decode.SkipDecoding()),
        )
        left, right = (decode(stored[name]) for name in _IMAGES)
        return stored["image_id"].decode(), left, right

    def describe(self) -> dict[str, Any]:
        """Returns source, count, a sha256 over those of the shards, and the license."""
        digest = hashlib.sha256("".join(self._checksums).encode())
        return {
            "source": f"prepared:{self.name}/{SPLIT}",
            "count": len(self),
            "sha256": digest.hexdigest(),
            "license": self._license,
        }
