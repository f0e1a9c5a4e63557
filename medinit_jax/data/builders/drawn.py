"""What the builders of drawn sets share: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.layout import Tree
from medinit_jax.data.phantoms import PHANTOMS


class Drawn(Builder, skip_registration=True):  # pyright: ignore
    """A builder whose `example` draws; its items hold seeds and name no files."""

    # The versions of the three drawings, so that nobody reads old images for new ones.
    VERSION = tfds.core.Version(
        ".".join(str(PHANTOMS[name].version) for name in ("fundus", "xray", "ct"))
    )
    MODALITY = "fundus, CT, X-ray"
    LICENSE = "Apache-2.0, as this package; drawn by it."
    LICENSE_URL = "https://www.apache.org/licenses/LICENSE-2.0"
    SIZE = "nothing to download"
    EXPECTED = "no files"

    def locate(self, folder: epath.PathLike | None = None) -> Tree:
        """Returns a folder that is never read, for there is nothing to find."""
        return Tree(self.name, epath.Path(self.data_path))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        splits = self.checked_items(self.locate())
        return {split: self._generate_examples(items) for split, items in splits.items()}
