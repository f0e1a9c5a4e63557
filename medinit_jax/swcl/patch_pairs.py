"""Pairs of patches for training, from a prepared set or from the files of SWCL's code."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import CONFIG_FILE
from medinit_jax.data.builders.retinal_swap import PAIRS, RetinalSwap
from medinit_jax.data.decode import DecodeError, decode
from medinit_jax.data.patch_records import PatchRecords
from medinit_jax.data.shards import checksum
from medinit_jax.data.tasks import DATA_DIR, make_builder
from medinit_jax.swcl.patch_store import TABLE
from medinit_jax.swcl.patch_table import PairTable, read_table

# The threshold of the paper.
THRESHOLD = 0.4
_SUFFIXES = (".jpg", ".png")
_BINS = 10


class PatchPairs(Protocol):
    """Pairs of patches by number; labels are known without opening an image.

    A pair is a dict with `left` and `right` uint8 (S, S, 3), `position` and `patient` int, and
    `scores` float64 (2,).

    Attributes:
        table: Positions, patients and scores of all pairs, in their order.
    """

    table: PairTable

    def __len__(self) -> int:
        """Returns the number of pairs."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one pair."""
        ...

    def describe(self) -> dict[str, Any]:
        """Returns source, count and sha256 for the record of a run."""
        ...


def open_pairs(place: str, data_dir: str = DATA_DIR) -> PatchPairs:
    """Opens patches.

    Args:
        place: "retinal_swap" or "retinal_swap/NAME", a prepared set; the workdir of the run that
            wrote patches; or else a folder that holds `labels.csv` and the image of every patch.
        data_dir: Where sets are prepared; a workdir names its own.

    Raises:
        UsageError: There is no such set, its table is wrong, or images are missing.
    """
    if (Path(place) / CONFIG_FILE).is_file():
        place, data_dir = _written_by(Path(place))
    if place.partition("/")[0] == RetinalSwap.name and not Path(place).is_dir():
        return PreparedPairs(place, data_dir)
    return FilePairs(Path(place))


def _written_by(workdir: Path) -> tuple[str, str]:
    """Returns where a run of the route `patches` has left its patches, and its data_dir."""
    try:
        summary = json.loads((workdir / "summary.json").read_text(encoding="utf-8"))
        place, data_dir = str(summary["place"]), str(summary["data_dir"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{workdir} is no finished run of configs/patches.py; run that to its end first, or "
            f"name retinal_swap/NAME or a folder of patches."
        ) from error
    # What lies in the workdir does so wherever that was moved to.
    if data_dir == ".":
        return place, str(workdir)
    return (place, data_dir) if data_dir else (str(workdir / place), "")


def abnormality(scores: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Returns int32 of the shape of `scores`: 1 where a score reaches the threshold, itself too.

    Raises:
        UsageError: The threshold is not inside [0, 1].

    Source: SWCL, section III-B, with 0.4.
    """
    if not 0 <= threshold <= 1:
        raise UsageError(
            f"The threshold of abnormality is {threshold}; scores lie between 0 and 1, so choose "
            f"one there, as {THRESHOLD}."
        )
    return (np.asarray(scores) >= threshold).astype(np.int32)


def one_sided(scores: np.ndarray, threshold: float = THRESHOLD) -> str:
    """Returns a warning if the threshold parts nothing, with a histogram; "" if all is well.

    Args:
        scores: Float, of all patches.
        threshold: Of abnormality.
    """
    share = float(abnormality(scores, threshold).mean())
    if 0 < share < 1:
        return ""
    counts, edges = np.histogram(scores, _BINS, (0, 1))
    bars = ", ".join(
        f"{low:.1f}-{high:.1f}: {count}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )
    side = "above" if share else "below"
    return (
        f"All {np.size(scores)} patches lie {side} the threshold {threshold}, so abnormality tells "
        f"them apart nowhere; choose another threshold, or train the labeler again (scores {bars})."
    )


class FilePairs:
    """Pairs in the layout of SWCL's code: a table and a file for every patch."""

    def __init__(self, folder: Path):
        """Reads the table, and looks whether all files are there.

        Args:
            folder: It holds `labels.csv`, and `NAME.jpg` or `NAME.png` of every patch.

        Raises:
            UsageError: The table is wrong, or files are missing.
        """
        self._folder = folder
        self.table = read_table(folder / TABLE)
        self._digest = checksum(folder / TABLE)
        with os.scandir(folder) as entries:
            there = {entry.name for entry in entries}
        suffixes = [suffix for suffix in _SUFFIXES if f"{self.table.names[0][0]}{suffix}" in there]
        self._suffix = suffixes[0] if suffixes else _SUFFIXES[0]
        files = [f"{name}{self._suffix}" for pair in self.table.names for name in pair]
        missing = [name for name in files if name not in there]
        if missing:
            raise UsageError(
                f"{folder} lacks {len(missing)} of the {len(files)} patches that its {TABLE} lists "
                f"({', '.join(missing[:3])}); write the set again."
            )

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self.table.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one pair."""
        left, right = (self._read(name) for name in self.table.names[index])
        return _pair(self.table, index, left, right)

    def _read(self, name: str) -> np.ndarray:
        path = self._folder / f"{name}{self._suffix}"
        try:
            return decode(path)
        except DecodeError as error:
            raise UsageError(f"{path} cannot be read ({error}); write the set again.") from error

    def describe(self) -> dict[str, Any]:
        """Returns source, count and the sha256 of the table."""
        return {"source": f"patches:{self._folder}", "count": len(self), "sha256": self._digest}


class PreparedPairs:
    """Pairs of a prepared set."""

    def __init__(self, name: str, data_dir: str):
        """Opens a set.

        Args:
            name: "retinal_swap" or "retinal_swap/NAME".
            data_dir: Where sets are prepared.

        Raises:
            UsageError: It is not there or cut short, or its table does not belong to its records.
        """
        self._records = PatchRecords(make_builder(name, data_dir))
        self._path = self._records.folder / PAIRS
        self.table = read_table(self._path)
        if len(self.table.names) != len(self._records):
            raise UsageError(
                f"{self._path} lists {len(self.table.names)} pairs of {len(self._records)}; delete "
                f"its folder and write the set again."
            )

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self.table.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns one pair."""
        name, left, right = self._records[index]
        if name != self.table.names[index][0]:
            raise UsageError(
                f"Record {index} of {self._records.name} is {name}, where {self._path} has "
                f"{self.table.names[index][0]}; delete its folder and write the set again."
            )
        return _pair(self.table, index, left, right)

    def describe(self) -> dict[str, Any]:
        """Returns source, count, a sha256 over those of the shards, and the license."""
        return self._records.describe()


def _pair(table: PairTable, index: int, left: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    return {
        "left": left,
        "right": right,
        "position": int(table.positions[index]),
        "patient": int(table.patients[index]),
        "scores": table.scores[index],
    }
