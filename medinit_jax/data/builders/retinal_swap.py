"""SWAP: patches of fundus photographs in pairs of a patient's two eyes, with scores of lesions."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.layout import Tree
from medinit_jax.data.manifest import read_manifest

# A table of all pairs beside the records, in their order, so that nobody reads images for labels.
PAIRS = "pairs.csv"
SPLIT = "train"
# The name of a config is that of its folder, too.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


@dataclasses.dataclass(kw_only=True)
class SwapConfig(Config):
    """How patches were made.

    Attributes:
        crop: Side of a patch in pixels.
        quality: Of patches stored as JPEG; 0 stores them as PNG. Lossless is the default: what a
            patch shows is then what the labeler scored, and no trace of compression is shared by
            the views that are to be told apart.
        origin: What the scores depend on, as checksums of labeler and images; any text.
    """

    crop: int = 224
    quality: int = 0
    origin: str = ""

    def __post_init__(self):
        """Refuses what makes no set."""
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} is no name for patches; use letters, digits, '_', '-' and '.', "
                f"with no '.' at the beginning, as retinal_swap/mine."
            )
        if self.crop < 1 or not 0 <= self.quality <= 100:
            raise UsageError(
                f"Patches of side {self.crop} and quality {self.quality} cannot be stored; choose "
                f"a side of at least 1, and a quality from 1 to 100, or 0 for PNG."
            )


class RetinalSwap(Builder):
    """SWAP: for a position on the retina, the patches of a patient's left and right eye.

    `image` is the left eye's, `image_right` the right eye's, mirrored. `score` and `score_right`
    are means of abnormality maps in [0, 1]. `abnormal` and `abnormal_right` are the labels of the
    whole photographs, unlabelled where unknown. Where a set counted as labelled, patches of its
    normal photographs have the score 0 by that label; all others are scored by the map.
    """

    HOMEPAGE = "https://arxiv.org/abs/2108.02122"
    LICENSE = "The terms of the photographs that it was cut from."
    CITATION = (
        "Yap and Ng, Semi-weakly Supervised Contrastive Representation Learning for Retinal Fundus "
        "Images, 2021."
    )
    SIZE = "nothing to download"
    EXPECTED = "no files"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "a trained labeler scores the photographs of both eyes; configs/patches.py does so."
    )
    BUILDER_CONFIGS = [
        SwapConfig(name="default", description="Patches of side 224 of photographs of side 448.")
    ]

    @classmethod
    def config_named(cls, name: str, data_dir: epath.PathLike) -> Config | None:
        """Returns a config of this name; one that was written is found by its manifest."""
        if not _NAME.fullmatch(name):
            return None
        manifest = read_manifest(epath.Path(data_dir) / cls.name / name / str(cls.VERSION))
        if manifest is None:
            return super().config_named(name, data_dir)
        return SwapConfig(**manifest["config"])

    def _create_builder_config(self, builder_config: Any, version: Any) -> Any:
        """Takes a set that was written under the name of the default one, too."""
        if isinstance(builder_config, SwapConfig):
            return builder_config
        return super()._create_builder_config(builder_config, version)

    @classmethod
    def is_root(cls, tree: Tree) -> bool:
        """Says that no folder is a download of this set."""
        return False

    def features(self) -> dict[str, Any]:
        """Returns the right eye's patch, the position, both scores and the photographs' labels."""
        state = tfds.features.ClassLabel(names=["normal", "abnormal"])
        return {
            "image_right": tfds.features.Image(shape=(None, None, 3)),
            "position": tfds.features.ClassLabel(names=["tl", "tr", "c", "bl", "br"]),
            "score": tfds.features.Scalar(np.float32),
            "score_right": tfds.features.Scalar(np.float32),
            "abnormal": state,
            "abnormal_right": tfds.features.ClassLabel(names=state.names),
            "source": tfds.features.Text(),
        }

    def locate(self, folder: epath.PathLike | None = None) -> Tree:
        """Says how the set comes to be: not from a folder."""
        raise UsageError(
            f"{self.name} is not prepared from files: {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        )

    def example(self, item: Item) -> dict[str, Any]:
        """Returns a pair whose patches are cut and encoded already."""
        return item.values
