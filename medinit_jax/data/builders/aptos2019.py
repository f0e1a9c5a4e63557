"""APTOS 2019: 5,590 fundus photographs, 3,662 of them graded (Kaggle 2019)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.data.builders.base import UNLABELLED, Builder
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.divisions import divide
from medinit_jax.data.builders.grades import GRADES, matched
from medinit_jax.data.duplicates import alike, difference_hash, divide_groups, identical
from medinit_jax.data.fov import circle_crop, crop_to, fov_mask
from medinit_jax.data.layout import DatasetLayoutError, Tree
from medinit_jax.data.tables import integer, read_table, unique_rows

_PAPER = {"train": 2929, "test": 733}


class MedinitAptos2019(Builder):
    """APTOS 2019: photographs from India, graded 0 to 4 for diabetic retinopathy.

    Size and black border go with the grade, so every photograph is cut to the square around its
    field. Some occur twice, with different grades even: `paper` notes how many identical files are
    in both of its parts, `paper_dedupe` keeps all that look alike in one.
    There are no patients' names.
    """

    HOMEPAGE = "https://www.kaggle.com/c/aptos2019-blindness-detection/data"
    LICENSE = "Rules of the Kaggle competition, account needed; no redistribution."
    CITATION = "Asia Pacific Tele-Ophthalmology Society, APTOS 2019 Blindness Detection, 2019."
    SIZE = "10 GB"
    EXPECTED = "train_images/, test_images/, train.csv and test.csv"
    MARKERS = (
        ("train_images", "train.csv"),
        ("train_images", "test_images"),
        ("test_images", "train.csv"),
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download APTOS 2019 from {HOMEPAGE}: {EXPECTED}."
    BUILDER_CONFIGS = [
        Config(name="default", description="3,662 graded, 1,928 without grade.", shorter=512),
        Config(
            name="paper",
            description="The graded ones, divided 80 to 20 at random; the papers name no seed.",
            shorter=512,
            rule="paper",
        ),
        Config(
            name="paper_dedupe",
            description="The same, with photographs that look alike in the same part.",
            shorter=512,
            rule="paper_dedupe",
        ),
    ]
    COUNTS = {
        "default": {"train": 3662, "test": 1928},
        "paper": _PAPER,
        "paper_dedupe": _PAPER,
    }

    def features(self) -> dict[str, Any]:
        """Returns the grade, and whether the field was found (else the whole image is taken)."""
        return {
            "label": tfds.features.ClassLabel(names=list(GRADES)),
            "fov_found": tfds.features.Scalar(dtype=np.bool_),
        }

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads the tables and folders."""
        path = tree.file("train.csv")
        columns = {"image": ("id_code",), "grade": ("diagnosis",)}
        rows = unique_rows(tree, path, read_table(tree, path, columns), "image")
        grades = {
            name: integer(tree, path, row, "grade", range(len(GRADES)))
            for name, row in rows.items()
        }
        folder = tree.folder("train_images")
        files = matched(self, folder, list(grades), folder.files(".png"))
        graded = {name: _item("train", name, file, grades[name]) for name, file in files.items()}
        config = self.builder_config
        if not config.rule:
            return {"train": list(graded.values()), "test": self._ungraded(tree)}
        first = len(graded) * 4 // 5
        if config.rule == "paper":
            parts = divide(list(graded), first, config.split_seed)
            self._note_copies(graded, parts)
        else:
            groups = self._lookalikes(list(graded.values()))
            parts = divide_groups(groups, first, config.split_seed)
        return {
            split: [graded[name]._replace(key=f"{split}/{name}") for name in part]
            for split, part in zip(("train", "test"), parts, strict=True)
        }

    def _ungraded(self, tree: Tree) -> list[Item]:
        path = tree.file("test.csv")
        table = read_table(tree, path, {"image": ("id_code",)})
        folder = tree.folder("test_images")
        names = list(unique_rows(tree, path, table, "image"))
        files = matched(self, folder, names, folder.files(".png"))
        return [_item("test", name, file, UNLABELLED) for name, file in files.items()]

    def _note_copies(
        self, graded: Mapping[str, Item], parts: tuple[Sequence[str], Sequence[str]]
    ) -> None:
        """Notes the photographs of test that are in train, too, under another name.

        Only files that are byte for byte the same are counted: finding those that merely look
        alike means decoding all of them, which is left to `paper_dedupe`.
        """
        train = set(parts[0])
        groups = identical({name: item.files["image"] for name, item in graded.items()})
        apart = [group for group in groups if 0 < len(train.intersection(group)) < len(group)]
        copied = sum(name not in train for group in apart for name in group)
        differing = sum(len({graded[name].values["label"] for name in g}) > 1 for g in apart)
        self.note_leak(
            copied,
            "photographs of test are in train under other names (identical files; "
            f"in {differing} of {len(apart)} groups the grades differ)",
            "medinit_aptos2019/paper_dedupe keeps copies in one part",
        )

    def _lookalikes(self, items: Sequence[Item]) -> list[list[str]]:
        """Groups the photographs that look alike, and notes those with different grades."""
        # Decoding gives the interpreter free, so threads do.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            hashes = list(pool.map(self._hash, items))
        readable = [number for number, one in enumerate(hashes) if one is not None]
        found = alike(np.array([hashes[number] for number in readable], np.uint64).reshape(-1, 4))
        groups = [[items[readable[number]] for number in group] for group in found]
        alone = [[items[number]] for number, one in enumerate(hashes) if one is None]
        several = [group for group in groups if len(group) > 1]
        differing = [g for g in several if len({item.values["label"] for item in g}) > 1]
        self.notes.append(
            f"groups of photographs that look alike: {len(several)}, with different grades: "
            f"{len(differing)}"
        )
        for group in differing:
            told = (f"{item.values['image_id']} has grade {item.values['label']}" for item in group)
            self.notes.append(f"look alike: {', '.join(told)}")
        return [[item.values["image_id"] for item in group] for group in groups + alone]

    def _hash(self, item: Item) -> np.ndarray | None:
        try:
            return difference_hash(circle_crop(self.read_image(item.files["image"])))
        except DatasetLayoutError:
            # With on_corrupt="skip" it is left out, and listed, when its turn comes.
            if self.on_corrupt == "skip":
                return None
            raise

    def example(self, item: Item) -> dict[str, Any]:
        """Decodes a photograph and cuts it to its field."""
        path = item.files["image"]
        image, size = self.read_sized(path)
        mask, found = fov_mask(image)
        stored = self.stored_image(crop_to(image, mask), path, size)
        return {**item.values, **stored, "fov_found": found}


def _item(split: str, name: str, file: epath.Path, grade: int) -> Item:
    values = {"image_id": name, "patient_id": "", "eye": "unknown", "label": grade}
    return Item(f"{split}/{name}", {"image": file}, values)
