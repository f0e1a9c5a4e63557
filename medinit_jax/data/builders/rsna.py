"""What the two DICOM datasets of the RSNA have in common."""

from __future__ import annotations

import concurrent.futures
import csv
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
from etils import epath

from medinit_jax.core.interrupt import ctrl_c_kept
from medinit_jax.data import dicom_file
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.config import Item
from medinit_jax.data.builders.divisions import divide
from medinit_jax.data.decode import DecodeError
from medinit_jax.data.layout import Tree, normal, pointer_kind

UNLABELLED_SPLIT = "unlabelled"
# Below this number, other processes take longer to start than they save.
_FEW_FILES = 2000


class RsnaBuilder(Builder, skip_registration=True):  # pyright: ignore
    """A dataset of DICOM files."""

    def read_dicom(
        self, path: epath.Path, show: Callable[[Any], np.ndarray]
    ) -> tuple[Any, np.ndarray]:
        """Reads a file once.

        Args:
            path: The file.
            show: Makes an image of its dataset.

        Returns:
            The dataset and the image.

        Raises:
            DatasetLayoutError: E_DECODE or E_LFS.
        """
        content = self.read_file(path)
        try:
            dataset = dicom_file.read(content)
            return dataset, show(dataset)
        except (DecodeError, ValueError) as error:
            self.unreadable(path, content, str(error))

    def matched(
        self, tree: Tree, labelled: Sequence[str], images: dict[str, epath.Path]
    ) -> list[str]:
        """Returns the names that have both a label and a file, sorted.

        Raises:
            DatasetLayoutError: E_ORPHAN.
        """
        known = set(labelled)
        self.refuse_orphans(
            tree, sorted(name for name in known if name not in images), len(known), "image"
        )
        self.refuse_orphans(
            tree, [name for name in images if name not in known], len(images), "label"
        )
        return sorted(name for name in known if name in images)

    def refuse_total(self, tree: Tree, found: int, wanted: int) -> None:
        """Raises E_COUNT unless the number of labelled images is the published one.

        Divisions of fewer images can have the right sizes and yet hold other images.
        """
        if found == wanted:
            return
        if not self.strict_counts:
            self.accept(f"{found} labelled images of {wanted}")
        else:
            tree.fail(
                "E_COUNT",
                "the number of labelled images is not the published one",
                found=[f"{found} images"],
                expected=str(wanted),
                fix="Finish the download; --any-count prepares what is there.",
            )

    def unlabelled_items(self, tree: Tree, values: dict[str, Any], *names: str) -> list[Item]:
        """Returns the images of the official test set, none if it was not downloaded."""
        if not any(tree.find(name) for name in names):
            return []
        return [
            Item(f"{UNLABELLED_SPLIT}/{name}", {"image": path}, {**values, "image_id": name})
            for name, path in tree.folder(*names).files(".dcm").items()
        ]

    def patients(self, images: dict[str, epath.Path]) -> dict[str, str]:
        """Reads the patient of every image from its header, in parallel.

        An empty PatientID makes the image a patient of its own.

        Raises:
            DatasetLayoutError: E_DECODE or E_LFS, unless such files are left out.
        """
        paths = [str(path) for path in images.values()]
        patients = {}
        for (name, path), found in zip(images.items(), _headers(paths), strict=True):
            patient, reason = found
            if reason and self.on_corrupt != "skip":
                self.unreadable(path, self.read_file(path), reason)
            patients[name] = patient or name
        return patients


def _headers(paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    if len(paths) < _FEW_FILES:
        yield from map(_patient, paths)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        with ctrl_c_kept():
            found = pool.map(_patient, paths, chunksize=500)
        yield from found


def _patient(path: str) -> tuple[str, str]:
    """Returns PatientID and, if it cannot be read, the reason."""
    try:
        return dicom_file.header(epath.Path(path), "PatientID")["PatientID"], ""
    except (DecodeError, OSError) as error:
        return "", str(error)


def stratified(classes: dict[str, Any], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Divides names so that both parts hold every class in the same proportion.

    The first part has floor(share x all) names; what is left over by rounding down in each class
    goes to those with the largest remainders.

    Args:
        classes: {name: class}.
        share: Share of the first part.
        seed: Seed of the permutations, see `divide`.

    Returns:
        Both parts, sorted.
    """
    members: dict[Any, list[str]] = {}
    for name, label in classes.items():
        members.setdefault(label, []).append(name)
    exact = {label: share * len(names) for label, names in members.items()}
    sizes = {label: int(size + 1e-9) for label, size in exact.items()}
    left = int(share * len(classes) + 1e-9) - sum(sizes.values())
    by_remainder = sorted(exact, key=lambda label: (sizes[label] - exact[label], str(label)))
    for label in by_remainder[:left]:
        sizes[label] += 1
    parts = [divide(names, sizes[label], seed) for label, names in members.items()]
    return sorted(sum((part[0] for part in parts), [])), sorted(sum((p[1] for p in parts), []))


def stream_rows(tree: Tree, path: epath.Path, columns: Sequence[str]) -> Iterator[tuple[int, Any]]:
    """Reads a long CSV file row by row.

    Args:
        tree: The dataset, for messages.
        path: The file.
        columns: Names of the columns that are needed.

    Yields:
        The number that a spreadsheet would show, and the cells of `columns`.

    Raises:
        DatasetLayoutError: E_LFS, E_COLUMNS or E_DECODE.
    """

    def fail(code: Any, what: str, found: Sequence[Any], fix: str) -> NoReturn:
        tree.fail(code, what, path=path, found=found, expected=", ".join(columns), fix=fix)

    with path.open("rb") as stream:
        start = stream.read(200)
        kind = pointer_kind(start)
        if kind:
            fail("E_LFS", f"{path.name} is {kind}", [], "Download the file again, signed in.")
        stream.seek(0)
        rows = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), strict=True)
        try:
            header = [normal(cell) for cell in next(rows, [])]
            places = [header.index(normal(name)) for name in columns if normal(name) in header]
            if len(places) < len(columns):
                fail(
                    "E_COLUMNS",
                    f"{path.name} lacks a column",
                    header,
                    "Restore the original table.",
                )
            last = max(places)
            for number, row in enumerate(rows, start=2):
                if len(row) > last:
                    yield number, [row[place] for place in places]
                elif any(cell.strip() for cell in row):
                    fail(
                        "E_LABEL_RANGE",
                        f"row {number} has {len(row)} cells",
                        row,
                        "Restore the original table.",
                    )
        except (csv.Error, UnicodeDecodeError) as error:
            fail("E_DECODE", f"{path.name} cannot be read ({error})", [], "Download it again.")
