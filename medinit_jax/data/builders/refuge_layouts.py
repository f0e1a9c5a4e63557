"""Where the files of REFUGE lie, in each of the trees in which it is found, and what they say."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from medinit_jax.data.layout import Tree, normal
from medinit_jax.data.tables import Row, integer, read_table

_MASKS = "Disc_Cup_Masks"
# Folders of the classes, in their order.
_CLASSES = (("Non-Glaucoma", "N"), ("Glaucoma", "G"))
_IMAGE = ("ImgName", "ImageName", "image_id")
_LABEL = ("Glaucoma Label", "Label(Glaucoma=1)", "Label (Glaucoma=1)", "glaucoma_label")
_FOVEA = {"x": ("Fovea_X",), "y": ("Fovea_Y",)}
Files = dict[str, epath.Path]


class Part(NamedTuple):
    """Where a third of REFUGE-1 lies.

    Attributes:
        images: Names of the folder of photographs.
        truth: Name of the folder of masks and table.
        table: Names of the table.
        package: Folder of both in REFUGE-2's package, under Train/.
        flattened: Names of the folder that SWCL's preparation leaves.
    """

    images: tuple[str, ...]
    truth: str
    table: tuple[str, ...]
    package: str
    flattened: tuple[str, ...]


PARTS = {
    "refuge1_train": Part(
        ("Training400", "REFUGE-Training400"),
        "Annotation-Training400",
        ("Fovea_location.xlsx", "Fovea_locations.xlsx"),
        "REFUGE1-train",
        ("train",),
    ),
    "refuge1_val": Part(
        ("REFUGE-Validation400", "Validation400"),
        "REFUGE-Validation400-GT",
        ("Fovea_locations.xlsx", "Fovea_location.xlsx"),
        "REFUGE1-val",
        ("val", "validation"),
    ),
    "refuge1_test": Part(
        ("Test400", "REFUGE-Test400"),
        "REFUGE-Test-GT",
        ("Glaucoma_label_and_Fovea_location.xlsx", "Glaucoma_label_and_Fovea_locations.xlsx"),
        "REFUGE1-test",
        ("test",),
    ),
}


class Known(NamedTuple):
    """What is known of the photographs of a part, by normal names; None: nothing of any.

    Attributes:
        images: The photographs.
        masks: Masks of disc and cup.
        labels: 0 or 1.
        foveas: x and y in pixels, from 0; both -1 where it was not marked.
    """

    images: Files
    masks: Files | None
    labels: dict[str, int] | None
    foveas: dict[str, tuple[float, float]] | None


def read_part(tree: Tree, source: str, rule: str) -> Known:
    """Reads one of PARTS, whichever tree it lies in.

    Args:
        tree: The root.
        source: Key of PARTS.
        rule: "segmentation" does without labels, "classification" without masks, "" needs both.

    Raises:
        DatasetLayoutError: Something is missing or no label.
    """
    part = PARTS[source]
    if tree.has("train/images"):
        return _flattened(tree.folder(*part.flattened), rule)
    return _official(tree, part, rule)


def _official(tree: Tree, part: Part, rule: str) -> Known:
    """Reads a part as the organizers distribute it, alone or in REFUGE-2's package."""
    packages = (f"Train/{part.package}", part.package)
    places = ("", *(f"{package}/" for package in packages))
    photographs = _descend(
        tree.folder(*(place + name for place in places for name in part.images)), part.images
    )
    truths = [*(place + part.truth for place in places), *packages]
    if part is PARTS["refuge1_test"]:
        _refuse_no_truth(tree, part, truths)
    truth = _descend(tree.folder(*truths), (part.truth,))
    images, labels = by_class(photographs, ".jpg", ".jpeg")
    masks = _masks(truth, _MASKS, rule)
    if not any(map(truth.has, part.table)) and _unneeded(
        "segmentation", rule, truth, part.table[0]
    ):
        return Known(images, masks, labels, None)
    path = truth.file(*part.table)
    label = {"label": _LABEL} if labels is None else {}
    rows = _by_name(truth, path, read_table(truth, path, {"image": _IMAGE, **_FOVEA, **label}))
    foveas = {
        name: (_pixel(truth, path, row, "x"), _pixel(truth, path, row, "y"))
        for name, row in rows.items()
    }
    return Known(images, masks, _labels(truth, path, rows) if label else labels, foveas)


def _refuse_no_truth(tree: Tree, part: Part, truths: Sequence[str]) -> None:
    """Raises E_NO_TEST_GT where the photographs were downloaded and what they show was not."""
    found = [tree.folder(name) for name in truths if tree.has(name)]
    wanted = (_MASKS, part.truth, *part.table)
    if not tree.packed(part.truth) and not any(place.find(*wanted) for place in found):
        tree.fail(
            "E_NO_TEST_GT",
            f"the photographs of {part.images[0]} come without masks and labels",
            found=[entry.name for place in (found or [tree]) for entry in place.entries.values()],
            expected=f"{part.truth}/ with {_MASKS}/ and {part.table[0]}",
            fix=f"Download {part.truth}.zip from the same site and unpack it there.",
        )


def _flattened(tree: Tree, rule: str) -> Known:
    """Reads a part of SWCL's preparation: images, segmentations, and labels.csv."""
    images, _ = by_class(tree.folder("images"), ".jpg", ".jpeg")
    masks = _masks(tree, "segmentations", rule)
    if _unneeded("segmentation", rule, tree, "labels.csv"):
        return Known(images, masks, None, None)
    path = tree.file(
        "labels.csv", fix="Put the table there, or prepare medinit_refuge/seg514 without it."
    )
    rows = _by_name(tree, path, read_table(tree, path, {"image": _IMAGE, "label": _LABEL}))
    return Known(images, masks, _labels(tree, path, rows), None)


def by_class(tree: Tree, *suffixes: str) -> tuple[Files, dict[str, int] | None]:
    """Returns {name: file} and {name: class}, from folders of the classes if there are any.

    Raises:
        DatasetLayoutError: E_MISSING_FILE: a folder has none.
    """
    divided = any(tree.has(name) for names in _CLASSES for name in names)
    folders = [tree.folder(*names) for names in _CLASSES] if divided else [tree]
    found = [
        {normal(stem): path for stem, path in folder.files(*suffixes).items()} for folder in folders
    ]
    if not all(found):
        folders[found.index({})].missing(f"any {suffixes[0]} file", suffixes)
    files = {name: path for part in found for name, path in part.items()}
    labels = {name: label for label, part in enumerate(found) for name in part}
    return files, labels if divided else None


def _unneeded(without: str, rule: str, tree: Tree, name: str) -> bool:
    """Says whether something is absent that the rule `without` does without, and it is the rule."""
    absent = rule == without and not tree.has(name) and not tree.packed(name)
    if absent:
        logging.warning("%s has no %s; %s does without.", tree.path, name, rule)
    return absent


def _masks(tree: Tree, name: str, rule: str) -> Files | None:
    if _unneeded("classification", rule, tree, name):
        return None
    fix = "Put the masks there, or prepare medinit_refuge/cls350, which needs none."
    return by_class(tree.folder(name, fix=fix), ".bmp", ".png")[0]


def _labels(tree: Tree, path: epath.Path, rows: dict[str, Row]) -> dict[str, int]:
    return {name: integer(tree, path, row, "label", (0, 1)) for name, row in rows.items()}


def _by_name(tree: Tree, path: epath.Path, table: Sequence[Row]) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for row in table:
        name = normal(str(row["image"])).removesuffix(".jpg")
        if not name or name in rows:
            tree.fail(
                "E_LABEL_RANGE",
                f"row {row['row']} has {f'a second {name}' if name else 'no image'}",
                path=path,
                found=[repr(row["image"])],
                expected="the name of an image, once",
                fix="Restore the original table.",
            )
        rows[name] = row
    return rows


def _pixel(tree: Tree, path: epath.Path, row: Row, name: str) -> float:
    """Returns a coordinate, from 0 where the table counts from 1; -1 where the cell is empty."""
    if row[name] == "":
        return -1.0
    try:
        value = float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        tree.fail(
            "E_LABEL_RANGE",
            f"row {row['row']} has the fovea's {name} {row[name]!r}",
            path=path,
            found=[repr(row[name])],
            expected="a number of pixels",
            fix="Put the original value back.",
        )
    return value - 1


def _descend(tree: Tree, names: Sequence[str]) -> Tree:
    """Returns the innermost of folders in each other, as archives leave them."""
    inner = next((name for name in names if tree.has(name)), None)
    return tree if inner is None else _descend(tree.folder(inner), names)
