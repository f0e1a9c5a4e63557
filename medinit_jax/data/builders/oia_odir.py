"""OIA-ODIR: both eyes of 5,000 patients with eight labels and a doctor's keywords (2019)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.odir_keywords import (
    CLASSES,
    NO_FUNDUS,
    eye_classes,
    hidden_normal,
    is_normal,
    is_normal_by_authors,
    keywords,
)
from medinit_jax.data.layout import Tree
from medinit_jax.data.tables import Row, integer, read_table

# Photographs with a huge black background, which some authors leave out.
ODD = frozenset(
    "2174_right 2175_left 2176_left 2177_left 2177_right 2178_right 2179_left 2179_right "
    "2180_left 2180_right 2181_left 2181_right 2182_left 2182_right 2957_left 2957_right".split()
)
# {split: (folder, start of the table's name)}
_SETS = {
    "train": ("Training Set", "training"),
    "validation": ("Off-site Test Set", "off-site test"),
    "test": ("On-site Test Set", "on-site test"),
}
_SOURCES = {"train": "training", "validation": "off-site", "test": "on-site"}
_COLUMNS = {
    "left": ("Left-Fundus",),
    "right": ("Right-Fundus",),
    "left keywords": ("Left-Diagnostic Keywords",),
    "right keywords": ("Right-Diagnostic Keywords",),
    **{name: (name,) for name in CLASSES},
}
_OPTIONAL = {"age": ("Patient Age", "Age"), "sex": ("Patient Sex", "Sex")}
_SEXES = ("female", "male", "unknown")
_EYES = ("left", "right")
# The re-release nests its folders twice.
_DEPTHS = ("", "ODIR-5K/", "ODIR-5K/ODIR-5K/")
_TABLES_5K = ("ODIR-5K_Training_Annotations(Updated)_V2.xlsx", "data.xlsx")
_FOLDERS_5K = ("ODIR-5K_Training_Dataset", "ODIR-5K_Training_Images", "Training Images")


class MedinitOiaOdir(Builder):
    """OIA-ODIR: two eyes of each patient, eight labels per patient, and labels per eye.

    `labels8` is the patient's, both eyes together; `eye_labels8` and `abnormal` are made of the
    eye's own keywords. Pairs with an "anterior segment image" are left out: four of 5,000.
    """

    HOMEPAGE = "https://github.com/nkicsl/OIA-ODIR"
    LICENSE = "Terms unclear: registration with the challenge; no redistribution."
    CITATION = "Li et al., A benchmark of ocular disease intelligent recognition, 2020."
    SIZE = "several GB"
    EXPECTED = (
        "Training Set/, Off-site Test Set/ and On-site Test Set/, each with Images/ and Annotation/"
    )
    MARKERS = (
        ("Training Set", "Off-site Test Set"),
        ("Training Set", "On-site Test Set"),
        ("Training Set/Images",),
        (_TABLES_5K[0],),
        ("full_df.csv",),
        ("data.xlsx", "Training Images"),
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download OIA-ODIR from {HOMEPAGE}; {EXPECTED}."
    BUILDER_CONFIGS = [
        Config(
            name="default",
            description="Training set, off-site test set (validation) and on-site test set (test).",
            shorter=512,
        ),
        Config(
            name="all",
            description="9,992 images for pretraining, of labels only normal or abnormal.",
            shorter=448,
            rule="all",
        ),
        Config(
            name="odir5k_train",
            description="The 3,500 training patients, from the Kaggle re-release or the original.",
            shorter=512,
            rule="train",
        ),
        Config(
            name="compat_code",
            description="As default, normal or not to the letter of the SWCL authors' code.",
            shorter=512,
            rule="authors",
        ),
    ]
    # Images before pairs are left out, which of the sets they are in being unpublished; "all" is
    # after that.
    _PUBLISHED = {"train": 7000, "validation": 1000, "test": 2000}
    COUNTS = {
        "default": _PUBLISHED,
        "all": {"train": 9992},
        "odir5k_train": {"train": 7000},
        "compat_code": _PUBLISHED,
    }

    def features(self) -> dict[str, Any]:
        """Returns labels of the patient and of the eye; of "all" only those without diseases."""
        features: dict[str, Any] = {
            "abnormal": tfds.features.ClassLabel(names=["normal", "abnormal"]),
            "odd": tfds.features.Scalar(dtype=np.int64),
            "source": tfds.features.Text(),
        }
        if self.builder_config.rule == "all":
            return features
        return {
            **features,
            "labels8": tfds.features.Tensor(shape=(8,), dtype=np.int64),
            "eye_labels8": tfds.features.Tensor(shape=(8,), dtype=np.int64),
            "keywords": tfds.features.Text(),
            "age": tfds.features.Scalar(dtype=np.int64),
            "sex": tfds.features.ClassLabel(names=list(_SEXES)),
        }

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads the sets of the config."""
        rule = self.builder_config.rule
        original = tree.find(*(folder for folder, _ in _SETS.values())) is not None
        if not original and rule != "train":
            tree.fail(
                "E_MISPLACED",
                "this looks like the re-release ODIR-5K, of which only the training set has labels",
                found=[place.name for place in tree.entries.values()],
                expected=self.EXPECTED,
                fix="Prepare medinit_oia_odir/odir5k_train, or take the original from "
                f"{self.HOMEPAGE}",
            )
        self._left_out: dict[str, int] = {}
        self._differing = 0
        splits: dict[str, list[Item]] = {}
        for split, (folder, table) in _SETS.items():
            if rule == "train" and split != "train":
                continue
            if original:
                part = tree.folder(folder)
                path = part.folder("Annotation").file(f"{table} annotation (English).xlsx")
                images = part.folder("Images")
            else:
                path, images = self._rerelease(tree)
            splits[split] = self._set(tree, path, images, split)
        eyes, differing = sum(len(items) for items in splits.values()), self._differing
        self.notes.append(f"the two keyword rules agree on {eyes - differing} of {eyes} eyes")
        if differing:
            logging.warning("%s; the manifest lists the others.", self.notes[-1].capitalize())
        self._refuse_shared_patients(tree, splits)
        if rule != "all":
            return splits
        together = [item for items in splits.values() for item in items]
        return {"train": [i._replace(key=f"train/{i.values['image_id']}") for i in together]}

    def counted(self, splits: Mapping[str, Sequence[Item]]) -> dict[str, int]:
        """Returns the numbers of images as downloaded, but of "all" as prepared."""
        found = super().counted(splits)
        if self.builder_config.rule == "all":
            return found
        return {split: number + self._left_out[split] for split, number in found.items()}

    def _rerelease(self, tree: Tree) -> tuple[Any, Tree]:
        """Returns the table and the images of ODIR-5K, of the table with all patients if it can."""
        names = [f"{depth}{name}" for name in _TABLES_5K for depth in _DEPTHS]
        path = tree.file(*names, "full_df.csv")
        folders = [f"{depth}{name}" for name in _FOLDERS_5K for depth in _DEPTHS]
        return path, tree.folder(*folders, "preprocessed_images")

    def _set(self, tree: Tree, path: Any, images: Tree, split: str) -> list[Item]:
        files = {stem.casefold(): place for stem, place in images.files(".jpg", ".jpeg").items()}
        patients = self._patients(tree, path)
        named = [f"{patient}_{eye}" for patient in patients for eye in _EYES]
        missing = [stem for stem in named if stem not in files]
        self.refuse_orphans(images, missing, len(named), "image")
        unknown = sorted(set(files) - set(named))
        self.refuse_orphans(images, unknown, len(files), f"row in {path.name}")
        items = []
        self._left_out[split] = 0
        for patient, row in patients.items():
            eyes = [eye for eye in _EYES if f"{patient}_{eye}" in files]
            if any(NO_FUNDUS in row[f"{eye} keywords"].casefold() for eye in _EYES):
                self._left_out[split] += len(eyes)
                self.ignored.append(f"{patient}: {NO_FUNDUS} ({len(eyes)} images)")
                continue
            items += [self._item(files, split, patient, eye, row) for eye in eyes]
        if self._left_out[split]:
            logging.warning(
                "%d images of the %s set are left out with pairs of which one is an %s.",
                self._left_out[split],
                _SOURCES[split],
                NO_FUNDUS,
            )
        return items

    def _patients(self, tree: Tree, path: Any) -> dict[str, Row]:
        """Returns {patient: row}, checked; full_df.csv has a row for each eye."""
        patients: dict[str, Row] = {}
        for row in read_table(tree, path, _COLUMNS, _OPTIONAL):
            number = row.pop("row")
            checked = {"row": number, **row}
            for name in CLASSES:
                row[name] = integer(tree, path, checked, name, (0, 1))
            blank = str(row["age"]) == ""
            row["age"] = -1 if blank else integer(tree, path, checked, "age", range(121))
            row["sex"] = str(row["sex"]).casefold() or "unknown"
            row.update({f"{eye} keywords": str(row[f"{eye} keywords"]) for eye in _EYES})
            stems = [str(row[eye]).casefold().rpartition(".")[0] for eye in _EYES]
            patient = stems[0].partition("_")[0]
            wrong = [f"{eye} keywords" for eye in _EYES if not keywords(row[f"{eye} keywords"])]
            if row["sex"] not in _SEXES:
                wrong.append("sex")
            if not patient.isdecimal() or stems != [f"{patient}_{eye}" for eye in _EYES]:
                wrong.append("image names")
            if patients.setdefault(patient, row) != row:
                wrong.append(f"values, other than those of patient {patient} further up")
            if wrong:
                tree.fail(
                    "E_LABEL_RANGE",
                    f"row {number} has unusable {wrong[0]}",
                    path=path,
                    found=[repr(value) for value in row.values()],
                    expected="<ID>_left.jpg and <ID>_right.jpg, keywords of both, Male or Female",
                    fix="Put the original values back, or delete the row and prepare with "
                    "--any-count.",
                )
        return patients

    def _item(self, files, split: str, patient: str, eye: str, row: Row) -> Item:
        text = row[f"{eye} keywords"]
        stem = f"{patient}_{eye}"
        ours, theirs = is_normal(text), is_normal_by_authors(text)
        if ours != theirs:
            told = "normal" if theirs else "abnormal"
            self._differing += 1
            self.notes.append(f"{stem}: {text!r} is {told} by the authors' code only")
        hidden = hidden_normal(text)
        if hidden:
            self.notes.append(f"{stem}: normal by the part 'normal fundus' of {hidden!r}")
            logging.warning("%s.", self.notes[-1])
        normal = theirs if self.builder_config.rule == "authors" else ours
        values = {
            "image_id": stem,
            "patient_id": f"odir_{patient}",
            "eye": eye,
            "abnormal": int(not normal),
            "odd": int(stem in ODD),
            "source": _SOURCES[split],
        }
        if self.builder_config.rule != "all":
            values["labels8"] = np.array([row[name] for name in CLASSES], np.int64)
            values["eye_labels8"] = np.array(eye_classes(text), np.int64)
            values.update(keywords=text, age=row["age"], sex=row["sex"])
        return Item(f"{split}/{stem}", {"image": files[stem]}, values)

    def _refuse_shared_patients(self, tree: Tree, splits: Mapping[str, Sequence[Item]]) -> None:
        """Raises E_MISPLACED if patients are in two sets, as where a folder was copied twice."""
        seen: dict[str, str] = {}
        for split, items in splits.items():
            patients = {item.values["patient_id"] for item in items}
            shared = sorted(patients & seen.keys())
            if shared:
                folder, other = _SETS[split][0], _SETS[seen[shared[0]]][0]
                tree.fail(
                    "E_MISPLACED",
                    f"{len(shared)} patients of {folder} are in {other}, too",
                    found=shared,
                    expected="other patients in every set",
                    fix=f"Download {folder} again, into its own folder.",
                )
            seen.update(dict.fromkeys(patients, split))
