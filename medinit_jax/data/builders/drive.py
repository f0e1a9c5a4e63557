"""DRIVE: 40 fundus photographs with vessels drawn by hand (Staal et al. 2004)."""

from __future__ import annotations

from etils import epath

from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.divisions import carve
from medinit_jax.data.builders.vessels import VesselBuilder, validation_config
from medinit_jax.data.layout import Tree, normal


class MedinitDrive(VesselBuilder):
    """DRIVE: vessel segmentation, 20 training and 20 test photographs of 565 x 584 pixels."""

    HOMEPAGE = "https://drive.grand-challenge.org/"
    LICENSE = "Registration on the site; no redistribution."
    CITATION = "Staal et al., Ridge-based vessel segmentation in color images of the retina, 2004."
    SIZE = "30 MB"
    EXPECTED = "training/ and test/, each with images/, mask/ and 1st_manual/"
    MARKERS = (
        ("training/1st_manual",),
        ("training/mask",),
        ("training/images", "test/images"),
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download DRIVE from {HOMEPAGE}; {EXPECTED}."
    BUILDER_CONFIGS = [
        Config(name="default", description="20 training, 20 test photographs."),
        validation_config("default"),
        Config(
            name="train_only",
            description="16 and 4 of the training photographs, where the test set has no vessels.",
            rule="train_only",
        ),
    ]
    COUNTS = {
        "default": {"train": 20, "test": 20},
        "validation": {"train": 16, "validation": 4, "test": 20},
        "train_only": {"train": 16, "test": 4},
    }

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads both folders."""
        train = self._part(tree.folder("training"), "train")
        if self.builder_config.rule == "train_only":
            kept, carved = carve(train, "test", self.builder_config.split_seed)
            return {"train": kept, "test": carved}
        return self.divided(train, self._part(tree.folder("test"), "test"))

    def _part(self, tree: Tree, split: str) -> list[Item]:
        drawn = tree.has("1st_manual") and tree.folder("1st_manual").entries
        if split == "test" and not drawn and not tree.packed("1st_manual"):
            tree.fail(
                "E_NO_TEST_GT",
                "the test photographs come without vessels",
                found=[place.name for place in tree.entries.values()],
                expected="1st_manual/",
                fix="Score on the official site, put an older copy's test/1st_manual here, or "
                "prepare medinit_drive/train_only: 16 and 4 of the training photographs.",
            )
        photographs = self.complete(
            tree,
            _numbered(tree.folder("images"), ".tif"),
            _numbered(tree.folder("1st_manual"), "_manual1.gif"),
            _numbered(tree.folder("2nd_manual"), "_manual2.gif") if tree.has("2nd_manual") else {},
            _numbered(tree.folder("mask"), "_mask.gif"),
        )
        return [
            Item(
                f"{split}/{number}",
                files,
                {"image_id": number, "patient_id": "", "eye": "unknown"},
            )
            for number, files in photographs.items()
        ]


def _numbered(tree: Tree, ending: str) -> dict[str, epath.Path]:
    return {
        place.name.partition("_")[0]: place
        for name, place in tree.entries.items()
        if name.endswith(normal(ending))
    }
