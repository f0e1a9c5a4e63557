"""RSNA Intracranial Hemorrhage Detection 2019: CT slices of the head (Flanders et al. 2020)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.data import dicom, dicom_file
from medinit_jax.data.builders.base import UNLABELLED
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.divisions import divide
from medinit_jax.data.builders.image_files import jpeg, png
from medinit_jax.data.builders.rsna import UNLABELLED_SPLIT, RsnaBuilder, stream_rows
from medinit_jax.data.layout import Tree

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
TYPES = (*SUBTYPES, "any")
# Center and width in Hounsfield units. No config shows the last two: they are for slices prepared
# in HU, as `dicom.window(hu, *WINDOWS["stroke"])`.
WINDOWS = {
    "brain": (40, 80),
    "subdural": (80, 200),
    "bone": (600, 2800),
    "soft": (40, 380),
    "stroke": (32, 8),
}
HU_LIMITS = (-1024, 3071)
# Published with 40 % of its pixels; nobody can read it.
CORRUPT = "ID_6431af929"
# Of 752 803 images; which ones the paper took is not published.
PAPER_IMAGES = 75280
_VIEWS = {"windows3": ("brain", "subdural", "bone"), "brain1": ("brain",) * 3, "hu": ()}
_RULES = {
    "full": "every labelled slice, and the official test set without labels",
    "paper10": "a tenth of the slices, 80 and 20 % of them, as many as in the paper; slices of a "
    "patient are on both sides",
    "patient": "every labelled slice, 80 and 20 % of the patients",
}
_JPEG_QUALITY = 95


# With labels, whether or not they can be read.
_LABELLED = 752803


def _configs() -> list[Config]:
    """Returns every view with every rule; windows3 is the one without a prefix."""
    described = {
        "windows3": "Brain, subdural and bone window as red, green and blue",
        "hu": "Hounsfield units",
        "brain1": "The brain window",
    }
    return [
        Config(
            name=rule if view == "windows3" else f"{view}_{rule}",
            description=f"{described[view]}: {_RULES[rule]}.",
            square=256,
            rule=f"{view} {rule}",
        )
        for view in _VIEWS
        for rule in _RULES
    ]


class MedinitRsnaIhd(RsnaBuilder):
    """Slices of head CTs with the kinds of bleeding that each shows."""

    MODALITY = "CT"
    HOMEPAGE = "https://www.kaggle.com/c/rsna-intracranial-hemorrhage-detection"
    LICENSE = "Rules of the Kaggle competition, for account holders only; non-commercial use."
    CITATION = "Flanders et al., Construction of a machine learning dataset through collaboration: "
    CITATION += "the RSNA 2019 brain CT hemorrhage challenge, 2020."
    SIZE = "460 GB"
    EXPECTED = "stage_2_train/, stage_2_test/ and stage_2_train.csv"
    MARKERS = (("stage_2_train.csv",), ("stage_2_train",))
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download from {HOMEPAGE} (account needed); {EXPECTED}."
    BUILDER_CONFIGS = _configs()
    COUNTS = {
        "full": {"train": _LABELLED - 1, UNLABELLED_SPLIT: 121232},
        "paper10": {"train": 60224, "test": 15056},
    }

    def features(self) -> dict[str, Any]:
        """Returns bleeding or not, its five kinds and the study; in HU, the image too."""
        features = {
            "label": tfds.features.ClassLabel(names=["no_hemorrhage", "hemorrhage"]),
            "labels": tfds.features.Tensor(shape=(len(SUBTYPES),), dtype=np.int64),
            "study_id": tfds.features.Text(),
        }
        if self._view == "hu":
            features["image"] = tfds.features.Tensor(
                shape=(None, None, 1), dtype=np.int16, encoding="zlib"
            )
        return features

    @property
    def _view(self) -> str:
        return self.builder_config.rule.partition(" ")[0]

    @property
    def _rule(self) -> str:
        return self.builder_config.rule.partition(" ")[2]

    def published(self, tree: Tree | None = None) -> Mapping[str, int]:
        """Returns the numbers of this rule, whatever the view."""
        del tree
        return self.COUNTS.get(self._rule, {})

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads the table, the folders and, unless `full`, the heads of files for patients."""
        dicom_file.require()
        images = tree.folder("stage_2_train", "stage_2_train_images").files(".dcm")
        labels = self._labels(tree, tree.file("stage_2_train.csv"))
        images.pop(CORRUPT, None)
        corrupt = labels.pop(CORRUPT, None) is not None
        if corrupt:
            self.ignored.append(f"{CORRUPT}: published with a part of its pixels only")
        ids = self.matched(tree, list(labels), images)
        self.refuse_total(tree, len(ids) + corrupt, _LABELLED)
        if self._rule == "full":
            splits = {"train": ids}
        else:
            splits = dict(zip(("train", "test"), self._divided(ids, images), strict=True))
        items = {
            split: [_item(split, one, images[one], labels[one]) for one in members]
            for split, members in splits.items()
        }
        if self._rule == "full":
            nothing = _label_values(np.full(len(TYPES), UNLABELLED))
            folders = "stage_2_test", "stage_2_test_images"
            unlabelled = self.unlabelled_items(tree, nothing, *folders)
            items |= {UNLABELLED_SPLIT: unlabelled} if unlabelled else {}
        return items

    def _divided(self, ids: list[str], images: dict[str, epath.Path]) -> tuple[list[str], ...]:
        seed = self.builder_config.split_seed
        if self._rule == "paper10":
            order = np.random.Generator(np.random.PCG64(seed)).permutation(len(ids))
            chosen = order[:PAPER_IMAGES]
            first = len(chosen) * 4 // 5
            parts = [[ids[i] for i in sorted(part)] for part in (chosen[:first], chosen[first:])]
            patients = self.patients({one: images[one] for part in parts for one in part})
            train, test = ({patients[one] for one in part} for part in parts)
            self.note_leak(
                len(train & test),
                "patients are in train and in test (slices are divided, as in the paper)",
                "medinit_rsna_ihd/patient has no such leak",
            )
            return tuple(parts)
        patients = self.patients({one: images[one] for one in ids})
        names = sorted(set(patients.values()))
        train = set(divide(names, len(names) * 4 // 5, seed)[0])
        return (
            [one for one in ids if patients[one] in train],
            [one for one in ids if patients[one] not in train],
        )

    def _labels(self, tree: Tree, path: epath.Path) -> dict[str, np.ndarray]:
        """Reads the long table.

        Returns:
            {image: int8 of `TYPES`}.
        """
        places: dict[str, int] = {}
        values, repeated = bytearray(), 0
        kinds = {kind: place for place, kind in enumerate(TYPES)}
        digits = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
        blank = b"\xff" * len(TYPES)

        def fail(number: int, found: str, what: str) -> NoReturn:
            tree.fail(
                "E_LABEL_RANGE",
                f"row {number} of {path.name} {what}",
                path=path,
                found=[found],
                expected=f"ID_<image>_<{', '.join(TYPES)}> and 0 or 1",
                fix="Restore the original table.",
            )

        for number, (name, text) in stream_rows(tree, path, ("ID", "Label")):
            image, _, kind = name.strip().rpartition("_")
            label = digits.get(text.strip())
            if kind not in kinds or label is None:
                fail(number, f"{name},{text}", "is no label")
            start = places.setdefault(image, len(values))
            if start == len(values):
                values += blank
            place = start + kinds[kind]
            if values[place] == 0xFF:
                values[place] = label
            elif values[place] == label:
                repeated += 1
            else:
                fail(number, f"{name},{text}", "contradicts an earlier row")
        table = np.frombuffer(bytes(values), np.int8).reshape(-1, len(TYPES))
        for image, start in places.items():
            row = table[start // len(TYPES)]
            if row.min() < 0:
                fail(0, image, f"and all others lack {TYPES[int(row.argmin())]} of {image}")
        if repeated:
            self.ignored.append(f"{repeated} rows of {path.name} that repeat an earlier one")
        strange = int((table[:, -1] != table[:, :-1].max(axis=1, initial=0)).sum())
        if strange:
            note = f"{strange} images of {path.name}: any is not the maximum of the five kinds"
            self.ignored.append(f"{note}; any counts")
            logging.warning("%s.", note)
        return {image: table[start // len(TYPES)] for image, start in places.items()}

    def example(self, item: Item) -> dict[str, Any]:
        """Decodes one slice."""
        dataset, hu = self.read_dicom(item.files["image"], hounsfield)
        square = padded(hu)
        config = self.builder_config
        if self._view == "hu":
            smooth = self.resized(square.astype(np.float32))
            image: Any = np.clip(np.rint(smooth), *HU_LIMITS).astype(np.int16)[..., None]
        else:
            names = _VIEWS[self._view]
            shares = [dicom.window(square, *WINDOWS[name]) for name in names]
            seen = self.resized(np.rint(np.stack(shares, axis=-1) * 255).astype(np.uint8))
            image = jpeg(seen, _JPEG_QUALITY) if config.square else png(seen)
        return {
            **item.values,
            "image": image,
            "patient_id": dicom_file.text(dataset, "PatientID"),
            "study_id": dicom_file.text(dataset, "StudyInstanceUID"),
            "orig_size": np.array(hu.shape, np.int32),
        }


def hounsfield(dataset: Any) -> np.ndarray:
    """Returns Hounsfield units of one slice, limited to `HU_LIMITS`.

    A group of the files stores unsigned 12 bits, wrapped around, with a wrong intercept: there the
    stored value is (value + 1000) mod 4096 and the intercept -1000.

    Args:
        dataset: What `dicom_file.read` returned.

    Returns:
        int16 (H, W).
    """
    bits = dicom_file.text(dataset, "BitsStored")
    signed = dicom_file.text(dataset, "PixelRepresentation")
    intercept = float(dicom_file.text(dataset, "RescaleIntercept") or 0)
    if bits == "12" and signed == "0" and intercept > -100:
        slope = float(dicom_file.text(dataset, "RescaleSlope") or 1)
        raw = (dicom_file.stored(dataset).astype(np.int32) + 1000) % 4096
        hu = np.rint(raw * slope - 1000)
    else:
        hu = dicom.hounsfield(dataset)
    return np.clip(hu, *HU_LIMITS).astype(np.int16)


def padded(hu: np.ndarray) -> np.ndarray:
    """Makes a slice square with air on both sides of the shorter axis."""
    height, width = hu.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square = np.full((side, side), HU_LIMITS[0], np.int16)
    square[top : top + height, left : left + width] = hu
    return square


def _label_values(row: np.ndarray) -> dict[str, Any]:
    """Returns the features of a row of `TYPES`."""
    *kinds, bleeding = row.tolist()
    return {"label": bleeding, "labels": tuple(kinds), "eye": "unknown"}


def _item(split: str, name: str, path: epath.Path, row: np.ndarray) -> Item:
    return Item(f"{split}/{name}", {"image": path}, {**_label_values(row), "image_id": name})
