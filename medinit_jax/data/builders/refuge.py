"""REFUGE: glaucoma, optic disc and cup, and the fovea in photographs (Orlando et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medinit_jax.data.builders.base import UNLABELLED, Builder
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.image_files import png
from medinit_jax.data.builders.refuge_layouts import PARTS, Known, read_part
from medinit_jax.data.layout import Tree

# What the pixels of a mask are where nobody drew disc and cup.
UNLABELLED_PIXEL = 255
# Gray levels of the files: cup, rim of the disc, background.
_LEVELS = (0, 128, 255)


class MedinitRefuge(Builder):
    """REFUGE: optic disc and cup, glaucoma, and the fovea; 400 photographs each to train and test.

    The training photographs come from another camera than the rest. `fovea` is x and y in pixels of
    the stored image, from 0. `vcdr` is the height of the cup by that of the disc, from the mask as
    it was drawn. What is not known is -1, and 255 in a mask.
    """

    HOMEPAGE = "https://refuge.grand-challenge.org/"
    LICENSE = "Registration on the site; no redistribution."
    CITATION = (
        "Orlando et al., REFUGE Challenge: a unified framework for evaluating automated methods "
        "for glaucoma assessment from fundus photographs, 2020."
    )
    SIZE = "about 2 GB"
    EXPECTED = (
        "Training400/, Annotation-Training400/, REFUGE-Validation400/, REFUGE-Validation400-GT/, "
        "Test400/ and REFUGE-Test-GT/"
    )
    MARKERS = (
        ("Training400",),
        ("REFUGE-Training400",),
        ("Annotation-Training400",),
        ("REFUGE-Validation400",),
        ("Train/REFUGE1-train",),
        ("Train/REFUGE1-val",),
        ("train/images", "train/labels.csv"),
        ("train/images", "train/segmentations"),
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download REFUGE from {HOMEPAGE}; {EXPECTED}."
    BUILDER_CONFIGS = [
        Config(name="default", description="Images and masks as they are."),
        Config(
            name="seg514",
            description="Images and masks stretched to 514 x 514, as SWCL has them.",
            square=514,
            rule="segmentation",
        ),
        Config(
            name="cls350",
            description="Shorter side 350; masks are not needed.",
            shorter=350,
            rule="classification",
        ),
        Config(
            name="seg512",
            description="Images and masks stretched to 512 x 512.",
            square=512,
            rule="segmentation",
        ),
    ]
    COUNTS = {
        name: {"train": 400, "validation": 400, "test": 400}
        for name in ("default", "seg514", "cls350", "seg512")
    }

    def features(self) -> dict[str, Any]:
        """Returns disc and cup, glaucoma, fovea, ratio of the heights, and the part of REFUGE."""
        return {
            "mask": tfds.features.LabeledImage(
                labels=["background", "disc", "cup"], shape=(None, None, 1)
            ),
            "label": tfds.features.ClassLabel(names=["normal", "glaucoma"]),
            "fovea": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "vcdr": tfds.features.Scalar(np.float32),
            "source": tfds.features.Text(),
        }

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads the three parts, wherever they lie."""
        return {
            split: self.part(tree, source, split)
            for split, source in zip(("train", "validation", "test"), PARTS, strict=True)
        }

    def part(self, tree: Tree, source: str, split: str) -> list[Item]:
        """Returns the items of one of PARTS, for a split.

        Raises:
            DatasetLayoutError: Something is missing or no label.
        """
        return self.matched(tree, read_part(tree, source, self.builder_config.rule), source, split)

    def matched(self, tree: Tree, known: Known, source: str, split: str) -> list[Item]:
        """Returns the items of photographs of which all is there.

        Raises:
            DatasetLayoutError: E_ORPHAN.
        """
        needed: dict[str, Mapping[str, Any]] = {
            what: found
            for what, found in (
                ("image", known.images),
                ("mask", known.masks),
                ("label", known.labels),
                ("row with its fovea", known.foveas),
            )
            if found is not None
        }
        names = sorted(set().union(*needed.values()))
        for what, found in needed.items():
            missing = [name for name in names if name not in found]
            self.refuse_orphans(tree, missing, len(names), what)
        items = []
        for name in names:
            if not all(name in found for found in needed.values()):
                continue
            image = known.images[name]
            files = {"image": image}
            if known.masks is not None:
                files["mask"] = known.masks[name]
            values = {
                "image_id": image.stem,
                "patient_id": "",
                "eye": "unknown",
                "label": UNLABELLED if known.labels is None else known.labels[name],
                "fovea": (-1.0, -1.0) if known.foveas is None else known.foveas[name],
                "source": source,
            }
            items.append(Item(f"{split}/{image.stem}", files, values))
        return items

    def example(self, item: Item) -> dict[str, Any]:
        """Decodes a photograph and its mask, measures the cup and moves the fovea."""
        image = self.read_image(item.files["image"])
        size = image.shape[:2]
        if "mask" in item.files:
            gray = self.read_gray(item.files["mask"])
            self.check_mask(item.files["mask"], gray, size, _LEVELS)
            mask = (gray <= 192).astype(np.uint8) + (gray <= 64)
            ratio = cup_to_disc(mask)
        else:
            mask, ratio = np.full(size, UNLABELLED_PIXEL, np.uint8), -1.0
        mask = self.resized(mask, nearest=True)
        return {
            **item.values,
            **self.stored_image(image, item.files["image"]),
            "mask": png(mask),
            "fovea": moved(item.values["fovea"], size, mask.shape),
            "vcdr": np.float32(ratio),
        }


def cup_to_disc(mask: np.ndarray) -> float:
    """Returns the height of the cup by that of the disc, which holds the cup.

    Args:
        mask: uint8 (H, W), 0 background, 1 disc, 2 cup.

    Returns:
        0 without a cup, -1 without a disc.
    """
    disc, cup = (np.flatnonzero((mask >= least).any(axis=1)) for least in (1, 2))
    if not len(disc):
        return -1.0
    return (np.ptp(cup) + 1) / (np.ptp(disc) + 1) if len(cup) else 0.0


def moved(
    point: tuple[float, float], size: tuple[int, ...], new_size: tuple[int, ...]
) -> np.ndarray:
    """Returns where a point lies after its image was resized.

    Args:
        point: x and y in pixels, (0, 0) the center of the first; negative: unknown.
        size: Height and width of the image.
        new_size: Height and width it was resized to.

    Returns:
        float32 (2,), x and y.
    """
    if min(point) < 0:
        return np.full(2, -1, np.float32)
    scale = np.array(new_size[::-1]) / np.array(size[::-1])
    return ((np.array(point) + 0.5) * scale - 0.5).astype(np.float32)
