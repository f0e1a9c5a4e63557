"""DRIVE: 40 fundus photographs with vessels drawn by hand (Staal et al. 2004)."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medinit_jax.data.builders.base import Builder, Config, Item, divide, png
from medinit_jax.data.layout import Tree

# Share of the pixels that a field of view covers at least; vessels cover about a tenth.
_LEAST_FIELD = 0.4
_MANUAL = "1st_manual/{}_manual1.gif"


class MedinitDrive(Builder):
    """DRIVE: vessel segmentation, 20 training and 20 test photographs of 565 x 584 pixels."""

    HOMEPAGE = "https://drive.grand-challenge.org/"
    LICENSE = "Registration on the site; no redistribution."
    CITATION = "Staal et al., Ridge-based vessel segmentation in color images of the retina, 2004."
    SIZE = "30 MB"
    EXPECTED = "training/ and test/, each with images/, mask/ and 1st_manual/"
    MARKERS = (("training", "test"), ("training/images", "training/mask"))
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download DRIVE from {HOMEPAGE}; {EXPECTED}."
    BUILDER_CONFIGS = [
        Config(name="default", description="20 training, 20 test photographs."),
        Config(
            name="train_only",
            description="16 and 4 of the training photographs, where the test set has no vessels.",
            rule="train_only",
        ),
    ]
    COUNTS = {"default": {"train": 20, "test": 20}, "train_only": {"train": 16, "test": 4}}

    def features(self) -> dict[str, Any]:
        """Returns vessels, those of a second observer in a list of none or one, and the field."""
        vessels = ["background", "vessel"]
        return {
            "mask": tfds.features.LabeledImage(labels=vessels, shape=(None, None, 1)),
            "mask2": tfds.features.Sequence(
                tfds.features.LabeledImage(labels=vessels, shape=(None, None, 1))
            ),
            "fov": tfds.features.Image(shape=(None, None, 1)),
        }

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads both folders."""
        train = self._part(tree.folder("training"), "train")
        if self.builder_config.rule != "train_only":
            return {"train": train, "test": self._part(tree.folder("test"), "test")}
        by_key = {item.key: item for item in train}
        kept = len(train) * 4 // 5
        parts = divide(list(by_key), kept, self.builder_config.split_seed)
        return {
            split: [by_key[key]._replace(key=key.replace("train/", f"{split}/")) for key in keys]
            for split, keys in zip(("train", "test"), parts, strict=True)
        }

    def _part(self, tree: Tree, split: str) -> list[Item]:
        images = tree.folder("images").files(".tif")
        vessels = {stem: tree.find(_MANUAL.format(_number(stem))) for stem in images}
        if split == "test" and not any(vessels.values()):
            tree.fail(
                "E_NO_TEST_GT",
                "the test photographs come without vessels",
                found=[place.name for place in tree.entries.values()],
                expected="1st_manual/",
                fix="Score on the official site, put an older copy's test/1st_manual here, or "
                "prepare medinit_drive/train_only: 16 and 4 of the training photographs.",
            )
        tree.folder("1st_manual")
        fields = {stem: tree.find(f"mask/{stem}_mask.gif") for stem in images}
        for found, what in ((vessels, "vessels"), (fields, "field of view")):
            missing = [stem for stem, place in found.items() if place is None]
            self.refuse_orphans(tree, missing, len(images), what)
        items = []
        for stem, image in images.items():
            number = _number(stem)
            mask, field = vessels[stem], fields[stem]
            if mask is None or field is None:
                continue
            files = {"image": image, "mask": mask, "fov": field}
            second = tree.find(f"2nd_manual/{number}_manual2.gif")
            if second is not None:
                files["mask2"] = second
            values = {"image_id": number, "patient_id": "", "eye": "unknown"}
            items.append(Item(f"{split}/{number}", files, values))
        return items

    def example(self, item: Item) -> dict[str, Any]:
        """Decodes a photograph and its masks."""
        image = self.read_image(item.files["image"])
        masks = {
            name: self.read_mask(path, image.shape[:2])
            for name, path in item.files.items()
            if name != "image"
        }
        covered = float(masks["fov"].mean())
        if covered < _LEAST_FIELD:
            self.fail(
                "E_MISPLACED",
                f"{item.files['fov'].name} covers {covered:.0%} of the image, as vessels do",
                item.files["fov"],
                found=["vessels"],
                expected="the field of view, about 70 %",
                fix="Put the masks of the field of view into mask/, vessels into 1st_manual/.",
            )
        # Stored as 0 and 1, the field as 0 and 255.
        masks["fov"] = masks["fov"] * np.uint8(255)
        encoded: dict[str, Any] = {
            name: png(self.resized(mask, nearest=True)) for name, mask in masks.items()
        }
        encoded["mask2"] = [encoded["mask2"]] if "mask2" in encoded else []
        return {**item.values, **self.stored_image(image, item.files["image"]), **encoded}


def _number(stem: str) -> str:
    return stem.partition("_")[0]
