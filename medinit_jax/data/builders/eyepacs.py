"""EyePACS: 88,702 fundus photographs graded for diabetic retinopathy (Kaggle 2015)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.data.builders.base import EYES, UNLABELLED, Builder
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.grades import GRADES, matched
from medinit_jax.data.builders.image_files import jpeg
from medinit_jax.data.graham import subtract_local_mean
from medinit_jax.data.layout import Tree
from medinit_jax.data.tables import integer, read_table, unique_rows

_LABELS = "trainLabels.csv"
_SOLUTION = ("retinopathy_solution.csv", "testLabels.csv")
_GRADABILITY = "eyepacs_gradability_grades.csv"
_PHOTOGRAPH = re.compile(r"\d+_(left|right)\.jpe?g", re.IGNORECASE)
_SUFFIXES = (".jpeg", ".jpg")
# All black; the papers' 35,125 training photographs are those without it.
_DROPPED_IN_PAPERS = "492_right"
# Public loaders list them as bad; where they cannot be read they are left out and counted.
_BAD = (_DROPPED_IN_PAPERS, "25313_right", "27096_right")
_SPLIT_OF = {"public": "validation", "private": "test"}
_ALL_SPLITS = {"train": 35126, "validation": 10906, "test": 42670}
_NO_LABEL = {"label": UNLABELLED, "abnormal": UNLABELLED, "referable": UNLABELLED}


class MedinitEyepacs(Builder):
    """EyePACS: photographs of both eyes, graded 0 to 4 for diabetic retinopathy.

    Grades are noisy, and pictures that cannot be graded have one, too. Eye and patient are those of
    the file name. The split `sample`, where the download has it, repeats training photographs.
    """

    HOMEPAGE = "https://www.kaggle.com/c/diabetic-retinopathy-detection/data"
    LICENSE = "Rules of the Kaggle competition, account needed; no redistribution."
    CITATION = "EyePACS and Kaggle, Diabetic Retinopathy Detection, 2015."
    SIZE = "88 GB"
    EXPECTED = f"train/, test/, {_LABELS} and {_SOLUTION[0]}"
    MARKERS = ((_LABELS,), (_SOLUTION[0],))
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Download EyePACS from {HOMEPAGE}, {_SOLUTION[0]} from the competition's discussions: "
        f"{EXPECTED}."
    )
    BUILDER_CONFIGS = [
        Config(name="default", description="Shorter side 512, five grades.", shorter=512),
        Config(name="pretrain448", description="Shorter side 448.", shorter=448),
        Config(name="cls350", description="Shorter side 350.", shorter=350),
        Config(
            name="btgraham300",
            description="Eye of radius 300, local mean subtracted, cut to 0.9 of the radius.",
            rule="btgraham300",
        ),
        Config(
            name="paper",
            description=f"Training photographs without {_DROPPED_IN_PAPERS}, private test set.",
            shorter=512,
            rule="paper",
        ),
        Config(
            name="all",
            description="All photographs in one split, unlabelled.",
            shorter=512,
            rule="all",
        ),
        Config(
            name="gradable",
            description=f"Those that {_GRADABILITY} calls gradable; how many is not published.",
            shorter=512,
            rule="gradable",
        ),
    ]
    COUNTS = {
        **dict.fromkeys(("default", "pretrain448", "cls350", "btgraham300"), _ALL_SPLITS),
        "paper": {"train": 35125, "test": 42670},
        "all": {"train": 88702},
    }
    KNOWN_CORRUPT = frozenset(f"{split}/{stem}" for split in _ALL_SPLITS for stem in _BAD)

    @classmethod
    def is_root(cls, tree: Tree) -> bool:
        """Says whether tables or photographs of EyePACS lie here; `all` needs no tables."""
        return super().is_root(tree) or any(
            _holds_photographs(tree.find(part)) for part in ("train", "test")
        )

    def features(self) -> dict[str, Any]:
        """Returns the grade, and what is derived from it: above 0, and 2 or more."""
        return {
            "label": tfds.features.ClassLabel(names=list(GRADES)),
            "abnormal": tfds.features.ClassLabel(names=["normal", "abnormal"]),
            "referable": tfds.features.ClassLabel(names=["not_referable", "referable"]),
        }

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads the tables and both folders."""
        rule = self.builder_config.rule
        folders = tree.folder("train"), tree.folder("test")
        train = folders[0].files(*_SUFFIXES)
        if rule == "all":
            return {"train": self._unlabelled(tree, train, folders[1].files(*_SUFFIXES))}
        levels = self._levels(tree, tree.file(_LABELS))
        if rule == "paper" and levels.pop(_DROPPED_IN_PAPERS, None) is not None:
            train.pop(_DROPPED_IN_PAPERS, None)
            self.ignored.append(f"{_DROPPED_IN_PAPERS}: left out as in the papers")
        files = matched(self, folders[0], list(levels), train)
        splits = {"train": _items("train", files, levels)}
        splits.update(self._solution(tree, folders[1]))
        if rule == "paper":
            return {split: splits[split] for split in ("train", "test")}
        if rule == "gradable":
            # Whether the download is whole can only be seen before photographs are left out.
            self.refuse_counts(tree, self.counted(splits), _ALL_SPLITS)
            return self._gradable(tree, splits)
        sample = tree.find("sample")
        if sample is not None and sample.is_dir():
            splits["sample"] = _items("sample", tree.folder("sample").files(*_SUFFIXES))
        return splits

    def _levels(self, tree: Tree, path: epath.Path) -> dict[str, int]:
        table = read_table(tree, path, {"image": ("image",), "level": ("level",)})
        return {
            name: integer(tree, path, row, "level", range(len(GRADES)))
            for name, row in unique_rows(tree, path, table, "image").items()
        }

    def _solution(self, tree: Tree, folder: Tree) -> dict[str, list[Item]]:
        path = tree.file(
            *_SOLUTION,
            fix=f"Put {_SOLUTION[0]} there; it is attached to the competition's discussions.",
        )
        columns = {"image": ("image",), "level": ("level",), "usage": ("Usage",)}
        rows = unique_rows(tree, path, read_table(tree, path, columns), "image")
        for row in rows.values():
            if row["usage"].casefold() not in _SPLIT_OF:
                tree.fail(
                    "E_LABEL_RANGE",
                    f"row {row['row']} has the usage {row['usage']!r}",
                    path=path,
                    found=[repr(row["usage"])],
                    expected="Public or Private",
                    fix="Put the original value back.",
                )
        levels = {
            name: integer(tree, path, row, "level", range(len(GRADES)))
            for name, row in rows.items()
        }
        files = matched(self, folder, list(rows), folder.files(*_SUFFIXES))
        parts: dict[str, dict[str, epath.Path]] = {split: {} for split in _SPLIT_OF.values()}
        for name, file in files.items():
            parts[_SPLIT_OF[rows[name]["usage"].casefold()]][name] = file
        return {split: _items(split, part, levels) for split, part in parts.items()}

    def _unlabelled(
        self, tree: Tree, train: Mapping[str, epath.Path], test: Mapping[str, epath.Path]
    ) -> list[Item]:
        both = sorted(set(train) & set(test))
        if both:
            tree.fail(
                "E_MISPLACED",
                f"{len(both)} photographs lie in train/ and in test/",
                found=both,
                expected="different photographs in each",
                fix="Unpack train.zip into train/ and test.zip into test/ again, both empty.",
            )
        return _items("train", {**train, **test})

    def _gradable(self, tree: Tree, splits: Mapping[str, list[Item]]) -> dict[str, list[Item]]:
        path = tree.file(
            _GRADABILITY,
            fix=f"Put {_GRADABILITY} of the JAMA 2016 replication study (Voets et al.) there.",
        )
        columns = {"image": ("image_name", "image"), "gradable": ("gradability", "gradable")}
        table = read_table(tree, path, columns, delimiter=" ")
        grades = {
            name: integer(tree, path, row, "gradable", (0, 1))
            for name, row in unique_rows(tree, path, table, "image").items()
        }
        names = [item.values["image_id"] for items in splits.values() for item in items]
        missing = [name for name in names if name not in grades]
        self.refuse_orphans(tree, missing, len(names), "gradability grade")
        kept = {
            split: [item for item in items if grades.get(item.values["image_id"]) == 1]
            for split, items in splits.items()
        }
        for split, items in splits.items():
            left_out = sum(grades.get(item.values["image_id"]) == 0 for item in items)
            self.ignored.append(f"{left_out} photographs of {split}: not gradable")
        return kept

    def example(self, item: Item) -> dict[str, Any]:
        """Decodes a photograph."""
        if self.builder_config.rule != "btgraham300":
            return super().example(item)
        image, size = self.read_sized(item.files["image"])
        encoded = jpeg(subtract_local_mean(image))
        return {**item.values, "image": encoded, "orig_size": np.array(size, np.int32)}


def _holds_photographs(folder: epath.Path | None) -> bool:
    """Says whether the first file of a folder is named as a photograph of EyePACS."""
    if folder is None or not folder.is_dir():
        return False
    # Not by Tree, which would look at all of the 53,576 files.
    first = next((place for place in folder.iterdir() if not place.name.startswith(".")), None)
    if first is not None and first.name == folder.name:
        return _holds_photographs(first)
    return first is not None and _PHOTOGRAPH.fullmatch(first.name) is not None


def _items(
    split: str, files: Mapping[str, epath.Path], levels: Mapping[str, int] | None = None
) -> list[Item]:
    """Returns the items of a split, unlabelled without `levels`."""
    items = []
    for name, file in files.items():
        patient, _, eye = name.partition("_")
        labels = _NO_LABEL
        if levels is not None:
            level = levels[name]
            labels = {"label": level, "abnormal": int(level > 0), "referable": int(level >= 2)}
        eye = eye if eye in EYES else "unknown"
        values = {"image_id": name, "patient_id": patient, "eye": eye, **labels}
        items.append(Item(f"{split}/{name}", {"image": file}, values))
    return items
