"""A table of images as a source."""

import hashlib
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
from etils import epath

from medinit_jax.core.errors import UsageError
from medinit_jax.data.decode import Fit, decode, decode_mask
from medinit_jax.data.folder import FolderSource
from medinit_jax.data.image_table import (
    TABLE_SUFFIXES,
    Columns,
    ImageRow,
    find_table,
    read_image_table,
)
from medinit_jax.data.label_columns import UNLABELLED
from medinit_jax.data.layout import Tree

_EYES = {"left": -1, "unknown": 0, "right": 1}


class TableSource(FolderSource):
    """The images that a table lists, sorted by path.

    `patient` of an example is what must stay in one part: the group, the patient, or the file.

    Attributes:
        rows: {file: its row}.
        label: Name of the label that is learned; "" if the table has none.
        classes: Names of its classes.
        labels: {label: names of its classes} of all labels.
        patients: What each image must stay together with.
        ignored: What of table and folder was left out, as sentences.
    """

    def __init__(
        self,
        path: epath.PathLike,
        size: int,
        fit: Fit = "crop",
        columns: Columns = Columns(),  # noqa: B008 (frozen)
        label: str = "",
        check: Literal["decode", "header"] = "decode",
        threads: int = 4,
    ):
        """Reads the table and checks its images.

        Args:
            path: The table, or a folder with one.
            size: Side of the images this source returns, in pixels.
            fit: How an image becomes square, see `decode.fit_square`.
            columns: Which column holds what.
            label: Which label of several columns or findings is learned.
            check: See `FolderSource`.
            threads: Threads that check.

        Raises:
            UsageError: Something is wrong with the table, or too many files are unreadable.
        """
        place = epath.Path(path)
        if not place.exists():
            raise UsageError(f"The table {place} does not exist; set data.path to a table.")
        if not place.is_dir() and not place.name.lower().endswith(TABLE_SUFFIXES):
            raise UsageError(f"{place} is no {', '.join(TABLE_SUFFIXES)} file; set data.path.")
        tree = Tree("data.path", place if place.is_dir() else place.parent)
        table = read_image_table(tree, find_table(tree) if place.is_dir() else place, columns)
        if not table.rows:
            rows = len(table.without_image) + len(table.without_mask)
            raise UsageError(
                f"None of the {rows} rows of {table.path} names a file that is in {table.root}; "
                f"set data.table.image and data.table.root."
            )
        self.label = _chosen(table.labels, label, table.path)
        self._column = list(table.labels).index(self.label) if self.label else -1
        self.path, self.size, self.fit, self.check = Path(table.root), size, fit, check
        self.labels = table.labels
        self.outside = tree.outside
        self.rows: dict[str, ImageRow] = {row.name: row for row in table.rows}
        self.ignored = [
            *(f"{row}: no image" for row in table.without_image),
            *(f"{row}: no mask" for row in table.without_mask),
            *table.repeated,
            *(f"{name}: in no row" for name in table.unlisted),
            *(f"{link}: leads out of the folder, or is no file" for link in tree.outside),
        ]
        if self.ignored:
            logging.warning(
                "%d rows or files are left out, among them: %s",
                len(self.ignored),
                "; ".join(self.ignored[:3]),
            )
        self._check(list(self.rows), threads)
        self.patients = [self.rows[file].group for file in self.files]
        self.classes = table.labels.get(self.label, ())
        self._table = (table.path.name, hashlib.sha256(table.path.read_bytes()).hexdigest())

    def splits(self) -> dict[str, np.ndarray]:
        """Returns the numbers of the images of every split that the table names."""
        names = np.array([self.rows[file].split for file in self.files])
        return {str(name): np.flatnonzero(names == name) for name in np.unique(names) if name}

    def _facts(self, file: str) -> dict[str, Any]:
        row = self.rows[file]
        facts: dict[str, Any] = {"eye": _EYES[row.eye], "patient": row.group}
        if self.label:
            facts["label"] = row.labels[self._column]
        return facts

    def full(self, index: int) -> dict[str, Any]:
        """Returns image uint8 (H, W, 3), mask uint8 (H, W) or None, all labels, eye and patient."""
        file = self.files[int(index)]
        row = self.rows[file]
        return {
            "image": decode(self.path / file),
            "mask": None if row.mask is None else decode_mask(Path(row.mask)),
            "labels": dict(zip(self.labels, row.labels, strict=True)),
            "eye": _EYES[row.eye],
            "patient": row.group,
        }

    def describe(self) -> dict[str, Any]:
        """Returns what to record of the images and of the table."""
        name, digest = self._table
        labels = [row.labels[self._column] for row in self.rows.values()] if self.label else []
        return {
            **super().describe(),
            "source": f"table:{self.path}/{name}",
            "table_sha256": digest,
            "label": self.label,
            "classes": list(self.classes),
            "unlabelled": labels.count(UNLABELLED),
            "ignored": self.ignored,
        }


def _chosen(labels: dict[str, tuple[str, ...]], wanted: str, path: epath.Path) -> str:
    if wanted and wanted not in labels:
        known = ", ".join(labels) or "none"
        raise UsageError(f"{path} has no label {wanted!r}; set data.label to one of: {known}.")
    if len(labels) > 1 and not wanted:
        raise UsageError(
            f"{path} has several labels; set data.label to the one to learn: {', '.join(labels)}."
        )
    return wanted or next(iter(labels), "")
