"""IDRiD: 516 fundus photographs graded for retinopathy and macular edema (Porwal et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow_datasets as tfds

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.divisions import divide
from medinit_jax.data.builders.grades import GRADES, matched
from medinit_jax.data.layout import Tree
from medinit_jax.data.tables import integer, read_table, unique_rows

_PART = "B. Disease Grading"
_IMAGES = "1. Original Images"
_TABLES = "2. Groundtruths"
_SPLITS = {
    "train": ("a. Training Set", "a. IDRiD_Disease Grading_Training Labels.csv"),
    "test": ("b. Testing Set", "b. IDRiD_Disease Grading_Testing Labels.csv"),
}
# The dataset's other parts hold folders of the same names.
_OTHER_PARTS = {
    "part A (segmentation) of IDRiD": ("A. Segmentation", "2. All Segmentation Groundtruths"),
    "part C (localization) of IDRiD": (
        "C. Localization",
        f"{_TABLES}/1. Optic Disc Center Location",
    ),
}
# No hard exudates; none within one disc diameter of the fovea; some within it.
_EDEMA_RISKS = ("none", "low", "high")


class MedinitIdrid(Builder):
    """IDRiD: photographs from India, with grades of retinopathy and of the risk of macular edema.

    The paper validates on 20 % of the 413 training photographs. As in all our own divisions, the
    part that stays is rounded down, to 330, so `validation` has 83; "train+validation" are all of
    them. A prediction is right jointly if it gets both grades.
    """

    HOMEPAGE = (
        "https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid"
    )
    LICENSE = "CC BY 4.0"
    LICENSE_URL = "https://creativecommons.org/licenses/by/4.0/"
    CITATION = "Porwal et al., Indian Diabetic Retinopathy Image Dataset (IDRiD), Data 3(3), 2018."
    SIZE = "1 GB"
    EXPECTED = f"{_PART}/ with {_IMAGES}/ and {_TABLES}/"
    MARKERS = ((_IMAGES, _TABLES), (_PART,))
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download part B of IDRiD from {HOMEPAGE}: {EXPECTED}."
    BUILDER_CONFIGS = [
        Config(name="grading", description="330 training, 83 validation, 103 test.", shorter=512),
    ]
    COUNTS = {"grading": {"train": 330, "validation": 83, "test": 103}}

    @classmethod
    def is_root(cls, tree: Tree) -> bool:
        """Says whether the folder is, or holds, part B."""
        return super().is_root(tree) and _other_part(tree) is None

    def recognize(self, tree: Tree) -> str | None:
        """Knows the dataset's other parts, too."""
        return _other_part(tree) or super().recognize(tree)

    def features(self) -> dict[str, Any]:
        """Returns both grades."""
        return {
            "dr": tfds.features.ClassLabel(names=list(GRADES)),
            "dme": tfds.features.ClassLabel(names=list(_EDEMA_RISKS)),
        }

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads both tables and folders."""
        if tree.find(_PART) is not None:
            tree = tree.folder(_PART)
        splits = {split: self._part(tree, split) for split in _SPLITS}
        train = splits["train"]
        parts = divide(list(train), len(train) * 4 // 5, self.builder_config.split_seed)
        return {
            "train": [train[name] for name in parts[0]],
            "validation": [train[name]._replace(key=f"validation/{name}") for name in parts[1]],
            "test": list(splits["test"].values()),
        }

    def _part(self, tree: Tree, split: str) -> Mapping[str, Item]:
        folder_name, table_name = _SPLITS[split]
        path = tree.folder(_TABLES).file(table_name)
        columns = {
            "image": ("Image name",),
            "dr": ("Retinopathy grade",),
            "dme": ("Risk of macular edema",),
        }
        rows = unique_rows(tree, path, read_table(tree, path, columns), "image")
        grades = {
            name: {
                "dr": integer(tree, path, row, "dr", range(len(GRADES))),
                "dme": integer(tree, path, row, "dme", range(len(_EDEMA_RISKS))),
            }
            for name, row in rows.items()
        }
        folder = tree.folder(_IMAGES).folder(folder_name)
        files = matched(self, folder, list(rows), folder.files(".jpg"))
        values = {"patient_id": "", "eye": "unknown"}
        return {
            name: Item(
                f"{split}/{name}", {"image": file}, {"image_id": name, **values, **grades[name]}
            )
            for name, file in files.items()
        }


def _other_part(tree: Tree) -> str | None:
    """Returns which part of IDRiD the folder is, if it is not the one with the grades."""
    if tree.find(_PART) is not None:
        return None
    for name, marks in _OTHER_PARTS.items():
        if any(tree.find(mark) is not None for mark in marks):
            return name
    return None
