"""Images that a table lists: every row checked, its files found, its labels made numbers."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from etils import epath

from medinit_jax.core.errors import UsageError
from medinit_jax.data import dicom_file
from medinit_jax.data.decode import DecodeError, medical_kind
from medinit_jax.data.folder import OTHER_SUFFIXES, eye_of, known_patients
from medinit_jax.data.label_columns import (
    BLANK,
    LabelReading,
    is_blank,
    key_of,
    plain,
    refuse,
    text_of,
)
from medinit_jax.data.layout import Tree
from medinit_jax.data.tables import Row, read_table

TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".xls")
EYE_WORDS = {
    **dict.fromkeys(("left", "l", "os"), "left"),
    **dict.fromkeys(("right", "r", "od"), "right"),
    **dict.fromkeys(("unknown", *BLANK), ""),
}
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SIDES = {-1: "left", 0: "unknown", 1: "right"}
_NAME_COLUMNS = (
    "Say which column it is: prepare medinit_table/NAME --columns image=file,labels=grade, or in "
    "training --config.data.table.image=file --config.data.table.labels=grade."
)
# Threads that read the headers of DICOM files.
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Columns:
    """Which column of a table holds what; "" is none.

    Attributes:
        image: File of the image, relative to `root`; its suffix may be missing.
        labels: Columns of labels: whole numbers from 0, or text. Blank, NaN and -1 are unlabelled.
        separator: Between several findings in the one label column, as "|".
        classes: Names of the classes in their order, or of the findings; empty: what the table
            holds, text sorted, numbers as they are.
        mask: File of the mask.
        patient: Whose image it is; without it, headers of DICOM files and names such as
            12_left.png tell.
        eye: left, right, L, R, OS, OD or blank; without it, names tell.
        split: train, val, test or another word.
        group: What must stay in one part where the table brings no splits; the patient if "".
        root: Folder of the files, relative to the table's; it cannot lead out of it.
    """

    image: str = "image"
    labels: tuple[str, ...] = ()
    separator: str = ""
    classes: tuple[str, ...] = ()
    mask: str = ""
    patient: str = ""
    eye: str = ""
    split: str = ""
    group: str = ""
    root: str = ""


def parse_columns(text: str) -> Columns:
    """Reads columns from "image=file,labels=grade|edema,patient=subject".

    Raises:
        UsageError: A pair names nothing that a column can hold.
    """
    known = [field.name for field in dataclasses.fields(Columns)]
    settings: dict[str, Any] = {}
    for pair in text.split(","):
        key, found, value = (part.strip() for part in pair.partition("="))
        if not found or key not in known:
            raise UsageError(
                f"Columns are given as image=file,labels=grade|edema with the keys "
                f"{', '.join(known)}; {pair.strip()!r} is none of these."
            )
        several = key in ("labels", "classes")
        settings[key] = tuple(filter(None, value.split("|"))) if several else value
    return Columns(**settings)


class ImageRow(NamedTuple):
    """One image.

    Attributes:
        row: Its number in the table, as a spreadsheet shows it.
        name: Its file, relative to the root.
        image: Its file.
        mask: File of its mask.
        labels: One number for each label of the table, -1: unlabelled.
        patient: "" if unknown.
        eye: "left", "right" or "unknown".
        split: "" if the table brings no splits.
        group: What it stays together with.
    """

    row: int
    name: str
    image: epath.Path
    mask: epath.Path | None
    labels: tuple[int, ...]
    patient: str
    eye: str
    split: str
    group: str


class ImageTable(NamedTuple):
    """A table that was read.

    Attributes:
        path: The table.
        root: The folder that its files are relative to.
        rows: Its images, sorted by name.
        labels: {label: names of its classes}, in the order of `ImageRow.labels`.
        without_image: Rows whose image is missing, as sentences.
        without_mask: Rows whose mask is missing.
        repeated: Rows that say the same as an earlier one and are left out.
        unlisted: Images in the folder that no row names.
        first_frames: DICOM files with several frames, as sentences; the first frame is the image.
    """

    path: epath.Path
    root: epath.Path
    rows: list[ImageRow]
    labels: dict[str, tuple[str, ...]]
    without_image: list[str]
    without_mask: list[str]
    repeated: list[str]
    unlisted: list[str]
    first_frames: list[str]


def find_table(tree: Tree, name: str = "") -> epath.Path:
    """Returns the table of a folder: the one of that name, or the only one.

    Raises:
        DatasetLayoutError: E_MISSING_FILE: there is none, or several.
    """
    if name:
        return tree.file(name)
    found = [place for place in tree.entries.values() if place.suffix.lower() in TABLE_SUFFIXES]
    if len(found) != 1:
        tree.fail(
            "E_MISSING_FILE",
            "it is not clear which table lists the images" if found else "there is no table",
            found=[place.name for place in found or tree.entries.values()],
            expected=f"one file that ends in {', '.join(TABLE_SUFFIXES)}",
            fix="Name the file of the table itself.",
        )
    return found[0]


def read_image_table(tree: Tree, path: epath.Path, columns: Columns) -> ImageTable:
    """Reads a table of images and finds its files.

    Args:
        tree: The folder that the table lies in; files outside it are refused.
        path: The table.
        columns: Which column holds what.

    Returns:
        The images, and lists of all that was left out.

    Raises:
        DatasetLayoutError: E_COLUMNS, E_LABEL_RANGE with the number of the row, E_ORPHAN for files
            outside the folder, E_MISSING_FILE for the root, E_DECODE or E_LFS for the table.
    """
    return _Reading(tree, path, columns).table()


class _Reading:
    def __init__(self, tree: Tree, path: epath.Path, columns: Columns):
        self.tree, self.path, self.columns = tree, path, columns
        below = PurePosixPath(columns.root).as_posix()
        folder = tree if below == "." else tree.folder(below)
        self.root = folder.path
        self.files = _Files(folder)
        # {image: PatientID}, without those that tell nothing.
        self.patients: dict[epath.Path, str] = {}

    def table(self) -> ImageTable:
        columns = self.columns
        single = (columns.mask, columns.patient, columns.eye, columns.split, columns.group)
        names = [name for name in (columns.image, *columns.labels, *single) if name]
        wanted = {key_of(name): (name,) for name in names}
        rows = read_table(self.tree, self.path, wanted, delimiter=None, fix=_NAME_COLUMNS)
        reading = LabelReading(self.tree, self.path, rows, columns.classes)
        labels = reading.labels(columns.labels, columns.separator)
        found, without_image, without_mask = [], [], []
        for place, row in enumerate(rows):
            image = self._file(row, columns.image)
            mask = self._file(row, columns.mask) if columns.mask else None
            if image is None:
                without_image.append(self._missing(row, columns.image))
            elif columns.mask and mask is None:
                without_mask.append(self._missing(row, columns.mask))
            else:
                own = tuple(column.numbers[place] for column in labels)
                found.append((row, image, mask, own))
        first_frames = self._read_headers({image for _, image, _, _ in found})
        images = [self._image(*one) for one in found]
        kept, repeated = self._without_repetitions(images)
        self._check_groups(kept)
        used = {one for row in kept for one in (row.image, row.mask) if one is not None}
        unlisted = [name for name, place in self.files.places.items() if place not in used]
        kept.sort(key=lambda row: row.name)
        classes = {label.name: label.classes for label in labels}
        return ImageTable(
            self.path,
            self.root,
            kept,
            classes,
            without_image,
            without_mask,
            repeated,
            unlisted,
            first_frames,
        )

    def _read_headers(self, images: Iterable[epath.Path]) -> list[str]:
        """Sets `patients`; returns which DICOM files have several frames."""

        def header(image: epath.Path) -> dict[str, str] | None:
            place = Path(image)
            if medical_kind(place) != "dicom":
                return None
            try:
                return dicom_file.header(place, "PatientID", "NumberOfFrames")
            except DecodeError:
                # Whoever decodes the file says what is wrong with it.
                return None

        ordered = sorted(images)
        with ThreadPoolExecutor(_THREADS) as pool:
            headers = dict(zip(ordered, pool.map(header, ordered), strict=True))
        read = {place: one for place, one in headers.items() if one is not None}
        if not self.columns.patient:
            told = {str(place): one["PatientID"] for place, one in read.items()}
            known = known_patients(told)
            self.patients = {place: told[str(place)] for place in read if told[str(place)] in known}
        return [
            f"{place.relative_to(self.root)}: the first of {one['NumberOfFrames']} frames is taken"
            for place, one in read.items()
            if one["NumberOfFrames"] not in ("", "0", "1")
        ]

    def _image(self, row: Row, image, mask, labels: tuple[int, ...]) -> ImageRow:
        columns, name = self.columns, image.relative_to(self.root).as_posix()
        told = eye_of(name)
        # Without a pattern such as 12_left in it, a name tells no patient.
        by_name = str(told["patient"]) if told["eye"] else ""
        patient = self.patients.get(image, by_name)
        eye = _SIDES[int(told["eye"])]
        if columns.patient:
            patient = plain(row[key_of(columns.patient)])
        if columns.eye:
            word = text_of(row[key_of(columns.eye)]).casefold()
            if word not in EYE_WORDS:
                refuse(self.tree, self.path, row, columns.eye, "left, right, L, R, OS, OD or blank")
            eye = EYE_WORDS[word] or "unknown"
        split = ""
        if columns.split:
            word = text_of(row[key_of(columns.split)])
            split = SPLIT_WORDS.get(word.casefold(), word)
            if not re.fullmatch(r"[A-Za-z]\w*", split) or split == "all":
                refuse(self.tree, self.path, row, columns.split, "train, val, test or another word")
        group = plain(row[key_of(columns.group)]) if columns.group else ""
        return ImageRow(
            row["row"], name, image, mask, labels, patient, eye, split, group or patient or name
        )

    def _file(self, row: Row, column: str) -> epath.Path | None:
        """Finds a file; None if it is missing."""
        cell = row[key_of(column)]
        if is_blank(cell):
            return None
        # Blanks within a name count.
        text = cell.strip().replace("\\", "/") if isinstance(cell, str) else text_of(cell)
        path = PurePosixPath(text)
        for root in (self.root.as_posix(), os.path.realpath(self.root)):
            if path.is_absolute() and path.is_relative_to(root):
                path = path.relative_to(root)
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", text):
            self.tree.fail(
                "E_ORPHAN",
                f"row {row['row']} names {text!r}, which is not inside the folder",
                path=self.path,
                found=[text],
                expected=f"a path relative to {self.root}",
                fix="Move the images into the folder and write relative paths.",
            )
        found = self.files.find(path.as_posix())
        if len(found) > 1:
            self.tree.fail(
                "E_ORPHAN",
                f"row {row['row']} names {text!r}, which several files may be",
                path=self.path,
                found=found,
                expected="one file",
                fix="Write the whole name with its suffix into the table.",
            )
        return self.files.places[found[0]] if found else None

    def _missing(self, row: Row, column: str) -> str:
        return f"row {row['row']} ({plain(row[key_of(column)]) or 'blank'})"

    def _without_repetitions(self, images: list[ImageRow]) -> tuple[list[ImageRow], list[str]]:
        first: dict[epath.Path, ImageRow] = {}
        repeated = []
        for image in images:
            earlier = first.setdefault(image.image, image)
            if earlier is image:
                continue
            if earlier._replace(row=image.row) != image:
                self.tree.fail(
                    "E_LABEL_RANGE",
                    f"rows {earlier.row} and {image.row} say different things of {image.name}",
                    path=self.path,
                    found=[f"row {one.row}: {_summary(one)}" for one in (earlier, image)],
                    expected="one row for each image",
                    fix="Delete one of the two rows.",
                )
            repeated.append(f"row {image.row}: says the same as row {earlier.row}")
        return list(first.values()), repeated

    def _check_groups(self, images: list[ImageRow]) -> None:
        """Refuses a patient in two groups; says which are in two of the table's own splits."""
        group_of: dict[str, ImageRow] = {}
        for image in images:
            other = group_of.setdefault(image.patient or image.name, image)
            if image.group != other.group:
                self.tree.fail(
                    "E_LABEL_RANGE",
                    f"rows {other.row} and {image.row} put {image.patient} into two groups",
                    path=self.path,
                    found=[other.group, image.group],
                    expected="all images of a patient in one group",
                    fix="Correct the column of groups, or name none; a column of patients counts "
                    "more than names and headers of files.",
                )
        splits: dict[str, set[str]] = {}
        for image in images:
            splits.setdefault(image.group, set()).add(image.split)
        shared = [group for group, found in splits.items() if len(found) > 1]
        if shared:
            logging.warning(
                "%s puts %d patients or groups into more than one split, among them %s.",
                self.path,
                len(shared),
                ", ".join(shared[:5]),
            )


class _Files:
    """The files of a folder and of those below it, by name without case, with and without suffix.

    Attributes:
        places: {path relative to the folder: file}, sorted, without what is clearly no image.
    """

    def __init__(self, tree: Tree):
        self.places = {
            name: place
            for name, place in sorted(tree.walk())
            if name.lower().endswith(".nii.gz") or place.suffix.lower() not in OTHER_SUFFIXES
        }
        self._names: dict[str, list[str]] = {}
        for name in self.places:
            stem = re.sub(r"(\.nii\.gz|\.[^./]+)$", "", name)
            for key in {name.casefold(), stem.casefold()}:
                self._names.setdefault(key, []).append(name)

    def find(self, name: str) -> list[str]:
        """Returns the file of that name, or all that it may mean."""
        return [name] if name in self.places else self._names.get(name.casefold(), [])


def _summary(image: ImageRow) -> str:
    mask = image.mask.name if image.mask else "no mask"
    return f"{image.labels} {image.patient} {image.eye} {image.split} {image.group} {mask}"
