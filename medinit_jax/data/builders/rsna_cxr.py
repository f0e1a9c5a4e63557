"""RSNA Pneumonia Detection Challenge 2018: frontal chest radiographs with boxes of opacities."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple, NoReturn

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.data import dicom, dicom_file
from medinit_jax.data.builders.base import UNLABELLED
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.divisions import divide
from medinit_jax.data.builders.rsna import (
    UNLABELLED_SPLIT,
    RsnaBuilder,
    stratified,
    stream_rows,
)
from medinit_jax.data.layout import Tree

CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
VIEWS, SEXES = ("AP", "PA", "unknown"), ("F", "M", "unknown")
IMAGES = 26684
_TRAIN_SHARE = 0.8
_BOX = ("x", "y", "width", "height")
# An age as DICOM has it, such as "051Y"; this set has plain numbers.
_AGE = re.compile(r"^(\d+)([YMWD]?)$")
_YEARS = {"Y": 1.0, "": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


class _Row(NamedTuple):
    """One row of the table of labels: a box, or that there is none.

    Attributes:
        target: 1 with an opacity.
        box: x, y, width, height in pixels; None without an opacity.
    """

    target: int
    box: tuple[float, ...] | None


class MedinitRsnaCxr(RsnaBuilder):
    """Chest radiographs with or without a lung opacity, three classes and boxes."""

    MODALITY = "X-ray"
    HOMEPAGE = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge"
    LICENSE = "Rules of the Kaggle competition, for account holders only."
    CITATION = "Shih et al., Augmenting the NIH chest radiograph dataset with expert annotations "
    CITATION += "of possible pneumonia, 2019."
    SIZE = "4 GB"
    EXPECTED = (
        "stage_2_train_images/, stage_2_test_images/, stage_2_train_labels.csv and "
        "stage_2_detailed_class_info.csv"
    )
    MARKERS = (("stage_2_train_labels.csv",), ("stage_2_detailed_class_info.csv",))
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download from {HOMEPAGE} (account needed); {EXPECTED}."
    BUILDER_CONFIGS = [
        Config(
            name="patient",
            description="80 and 20 % of the patients of each of the three classes, and the "
            "official test set without labels.",
            shorter=512,
            rule="patient",
        ),
        Config(
            name="paper_rows",
            description="80 and 20 % of the rows of the table, as many as in the paper: an image "
            "with several boxes appears several times, also on both sides.",
            shorter=512,
            rule="paper_rows",
        ),
    ]
    COUNTS = {
        "patient": {"train": 21347, "test": 5337, UNLABELLED_SPLIT: 3000},
        "paper_rows": {"train": 24181, "test": 6046},
    }

    def features(self) -> dict[str, Any]:
        """Returns the two labels, boxes in shares of the image, view, age in years and sex."""
        return {
            "label": tfds.features.ClassLabel(names=["no_opacity", "opacity"]),
            "class3": tfds.features.ClassLabel(names=list(CLASSES)),
            "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
            "view": tfds.features.ClassLabel(names=list(VIEWS)),
            "age": np.int32,
            "sex": tfds.features.ClassLabel(names=list(SEXES)),
        }

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads both tables and the folders."""
        dicom_file.require()
        images = tree.folder("stage_2_train_images").files(".dcm")
        rows = self._rows(tree, tree.file("stage_2_train_labels.csv"))
        classes = self._classes(tree, tree.file("stage_2_detailed_class_info.csv"))
        ids = self.matched(tree, list(rows), images)
        unclassed = [one for one in ids if one not in classes]
        self.refuse_orphans(tree, unclassed, len(ids), "class")
        ids = [one for one in ids if one in classes]
        self.refuse_total(tree, len(ids), IMAGES)
        if self.builder_config.rule == "paper_rows":
            return self._by_row(ids, images, rows, classes)
        parts = stratified(
            {one: classes[one] for one in ids}, _TRAIN_SHARE, self.builder_config.split_seed
        )
        items = {
            split: [_item(split, one, one, images[one], rows[one], classes[one]) for one in members]
            for split, members in zip(("train", "test"), parts, strict=True)
        }
        nothing = {"label": UNLABELLED, "class3": UNLABELLED, "boxes": (), "eye": "unknown"}
        unlabelled = self.unlabelled_items(tree, nothing, "stage_2_test_images")
        return items | ({UNLABELLED_SPLIT: unlabelled} if unlabelled else {})

    def _by_row(
        self,
        ids: list[str],
        images: dict[str, epath.Path],
        rows: dict[str, list[_Row]],
        classes: dict[str, str],
    ) -> dict[str, list[Item]]:
        of_row = {f"{one}#{k}": (one, row) for one in ids for k, row in enumerate(rows[one])}
        first = int(_TRAIN_SHARE * len(of_row) + 1e-9)
        parts = divide(list(of_row), first, self.builder_config.split_seed)
        train, test = ({of_row[name][0] for name in part} for part in parts)
        self.note_leak(
            len(train & test),
            "patients are in train and in test (rows are divided, as in the paper)",
            "medinit_rsna_cxr/patient has no such leak",
        )
        return {
            split: [
                _item(split, name, one, images[one], [row], classes[one])
                for name in part
                for one, row in [of_row[name]]
            ]
            for split, part in zip(("train", "test"), parts, strict=True)
        }

    def _rows(self, tree: Tree, path: epath.Path) -> dict[str, list[_Row]]:
        rows: dict[str, list[_Row]] = {}
        for number, cells in stream_rows(tree, path, ("patientId", *_BOX, "Target")):
            patient, *box, target = (cell.strip() for cell in cells)
            if target not in ("0", "1") or not patient:
                _refuse(tree, path, number, target, "Target 0 or 1 of a patient")
            rows.setdefault(patient, []).append(
                _Row(int(target), _box(tree, path, number, box) if target == "1" else None)
            )
        return rows

    def _classes(self, tree: Tree, path: epath.Path) -> dict[str, str]:
        classes: dict[str, str] = {}
        for number, cells in stream_rows(tree, path, ("patientId", "class")):
            patient, name = (cell.strip() for cell in cells)
            if name not in CLASSES:
                _refuse(tree, path, number, name, "one of " + ", ".join(CLASSES))
            if classes.setdefault(patient, name) != name:
                _refuse(tree, path, number, name, f"{classes[patient]}, as in an earlier row")
        return classes

    def example(self, item: Item) -> dict[str, Any]:
        """Decodes one radiograph."""
        path = item.files["image"]
        dataset, image = self.read_dicom(path, dicom.displayed)
        height, width = image.shape[:2]
        header = {
            tag: dicom_file.text(dataset, tag)
            for tag in ("PatientID", "ViewPosition", "PatientAge", "PatientSex")
        }
        boxes = [_shares(box, height, width) for box in item.values["boxes"]]
        return {
            "patient_id": header["PatientID"] or item.values["image_id"],
            **item.values,
            **self.stored_image(image, path),
            "boxes": boxes,
            "view": _known(header["ViewPosition"], VIEWS),
            "age": _age(header["PatientAge"]),
            "sex": _known(header["PatientSex"], SEXES),
        }


def _item(
    split: str, name: str, patient: str, path: epath.Path, rows: list[_Row], class3: str
) -> Item:
    values = {
        "image_id": patient,
        "patient_id": patient,
        "eye": "unknown",
        "label": max(row.target for row in rows),
        "class3": class3,
        "boxes": tuple(row.box for row in rows if row.box is not None),
    }
    return Item(f"{split}/{name}", {"image": path}, values)


def _box(tree: Tree, path: epath.Path, number: int, cells: list[str]) -> tuple[float, ...]:
    """Returns x, y, width and height in pixels."""
    try:
        box = tuple(float(cell) for cell in cells)
    except ValueError:
        box = (math.nan,) * 4
    if not all(map(math.isfinite, box)) or min(box[2:]) <= 0:
        _refuse(tree, path, number, ", ".join(cells), "x, y and a positive width and height")
    return box


def _refuse(tree: Tree, path: epath.Path, number: int, found: str, expected: str) -> NoReturn:
    tree.fail(
        "E_LABEL_RANGE",
        f"row {number} of {path.name} has {found!r}",
        path=path,
        found=[repr(found)],
        expected=expected,
        fix="Restore the original table.",
    )


def _shares(box: tuple[float, ...], height: int, width: int) -> tfds.features.BBox:
    """Returns a box, cut at the image's border, in shares of height and width."""
    x, y, across, down = box
    top, bottom = (min(max(edge / height, 0.0), 1.0) for edge in (y, y + down))
    left, right = (min(max(edge / width, 0.0), 1.0) for edge in (x, x + across))
    return tfds.features.BBox(ymin=top, xmin=left, ymax=bottom, xmax=right)


def _known(value: str, names: tuple[str, ...]) -> str:
    return value.upper() if value.upper() in names else "unknown"


def _age(text: str) -> int:
    """Returns full years of a DICOM age ("051Y", or plainly "51"), -1 if it is none."""
    match = _AGE.match(text.upper())
    return -1 if match is None else int(int(match[1]) * _YEARS[match[2]] + 1e-9)
