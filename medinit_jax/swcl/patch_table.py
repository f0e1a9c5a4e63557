"""The table of pairs of patches, in the layout of SWCL's code: written and read with checks."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.swcl.patch_geometry import POSITIONS, PatchName, parse_name, patient_numbers

COLUMNS = ("id", "left-patch", "left-score", "right-patch", "right-score")
# Not in the authors' table: what is known of the whole photographs.
LABELS = ("left-label", "right-label")
_LABEL_VALUES = ("-1", "0", "1")


class Row(NamedTuple):
    """A pair of patches.

    Attributes:
        left: Name of the left eye's patch.
        left_score: Its score in [0, 1].
        right: Name of the right eye's patch.
        right_score: Its score.
        left_label: Of the left photograph: 0 normal, 1 abnormal, -1 unknown.
        right_label: Of the right photograph.
    """

    left: str
    left_score: float
    right: str
    right_score: float
    left_label: int = -1
    right_label: int = -1


class PairTable(NamedTuple):
    """All pairs, in columns.

    Attributes:
        names: (left, right) of every pair.
        sources: The set of every pair.
        positions: int32 (n,), numbers of `POSITIONS`.
        patients: int32 (n,), see `patient_numbers`.
        scores: float64 (n, 2), left and right.
        labels: int32 (n, 2) of the photographs: 0 normal, 1 abnormal, -1 unknown.
    """

    names: list[tuple[str, str]]
    sources: list[str]
    positions: np.ndarray
    patients: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


def table_text(rows: Iterable[Row], labels: bool) -> str:
    """Returns a table as text; ids are 0, 2, 4 and so on, as SWCL's code has them.

    Args:
        rows: The pairs in their order.
        labels: Whether the labels of the photographs are written, which the authors' table lacks.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS + LABELS if labels else COLUMNS)
    for number, row in enumerate(rows):
        # The shortest text that gives the same number again.
        scores = repr(float(row.left_score)), repr(float(row.right_score))
        line = [2 * number, row.left, scores[0], row.right, scores[1]]
        writer.writerow([*line, row.left_label, row.right_label] if labels else line)
    return stream.getvalue()


def read_table(path: Path) -> PairTable:
    """Reads a table of pairs.

    Args:
        path: The file, with the columns `COLUMNS` and perhaps `LABELS`.

    Returns:
        Its columns.

    Raises:
        UsageError: It cannot be read, or a row is none of a pair, with its number in the file.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            absent = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            lines = [] if absent else [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(
            f"{path} cannot be read ({error}); name the folder of a set of patches."
        ) from error
    if absent:
        raise UsageError(
            f"{path} has no column {absent[0]!r}; its header should be {','.join(COLUMNS)}."
        )
    if not lines:
        raise UsageError(f"{path} lists no patches; write the set again.")
    seen: dict[tuple[str, ...], int] = {}
    names, parsed, scores, labels = [], [], [], []
    for number, line in lines:
        left, right = (_patch(path, number, line, eye) for eye in ("left", "right"))
        if left._replace(eye="right") != right:
            raise UsageError(
                f"Row {number} of {path} joins {line['left-patch']} and {line['right-patch']}, "
                f"which are not the same place in both eyes of a patient; put the original names "
                f"back."
            )
        first = seen.setdefault((left.source, left.patient, left.position), number)
        if first != number:
            raise UsageError(
                f"Row {number} of {path} repeats the patch {line['left-patch']} of row {first}; "
                f"delete one of them."
            )
        names.append((line["left-patch"], line["right-patch"]))
        parsed.append(left)
        scores.append([_score(path, number, line, f"{eye}-score") for eye in ("left", "right")])
        labels.append([_label(path, number, line, column) for column in LABELS])
    sources = [one.source for one in parsed]
    return PairTable(
        names=names,
        sources=sources,
        positions=np.array([POSITIONS.index(one.position) for one in parsed], np.int32),
        patients=patient_numbers(sources, [one.patient for one in parsed]),
        scores=np.array(scores, np.float64),
        labels=np.array(labels, np.int32),
    )


def _patch(path: Path, number: int, line: dict[str, str], eye: str) -> PatchName:
    text = line[f"{eye}-patch"]
    try:
        found = parse_name(text or "")
    except UsageError as error:
        raise UsageError(f"Row {number} of {path}: {error}") from None
    if found.eye != eye:
        raise UsageError(
            f"Row {number} of {path} has {text!r} as the patch of the {eye} eye; put the original "
            f"name back."
        )
    return found


def _score(path: Path, number: int, line: dict[str, str], column: str) -> float:
    try:
        score = float(line[column])
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        raise UsageError(
            f"Row {number} of {path} has the {column} {line[column]!r}; scores lie between 0 and "
            f"1, so score the photographs again."
        )
    return score


def _label(path: Path, number: int, line: dict[str, str], column: str) -> int:
    if column not in line:
        return -1
    if line[column] not in _LABEL_VALUES:
        raise UsageError(
            f"Row {number} of {path} has the {column} {line[column]!r}; it should be one of: "
            f"{', '.join(_LABEL_VALUES)}."
        )
    return int(line[column])
