"""REFUGE: glaucoma, optic disc and cup, and the fovea in photographs (Orlando et al. 2020)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.data.builders.base import UNLABELLED, Builder, Config, Item, png
from medinit_jax.data.layout import Tree, normal
from medinit_jax.data.tables import Row, integer, read_table

# What the pixels of a mask are where nobody drew disc and cup.
UNLABELLED_PIXEL = 255
# Gray levels of the files: cup, rim of the disc, background.
_LEVELS = (0, 128, 255)
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


class MedinitRefuge(Builder):
    """REFUGE: optic disc and cup, glaucoma, and the fovea; 400 photographs each to train and test.

    The training photographs come from another camera than the rest. `fovea` is x and y in pixels of
    the stored image, from 0. `vcdr` is the height of the cup by that of the disc, from the mask as
    it was drawn. What is not known is -1, and 255 in a mask.
    """

    HOMEPAGE = "https://refuge.grand-challenge.org/"
    LICENSE = "Registration on the site; no redistribution."
    CITATION = (
        "Orlando et al., REFUGE Challenge: a unified framework for evaluating automated methods "
        "for glaucoma assessment from fundus photographs, 2020."
    )
    SIZE = "about 2 GB"
    EXPECTED = (
        "Training400/, Annotation-Training400/, REFUGE-Validation400/, REFUGE-Validation400-GT/, "
        "Test400/ and REFUGE-Test-GT/"
    )
    MARKERS = (
        ("Training400",),
        ("REFUGE-Training400",),
        ("Annotation-Training400",),
        ("REFUGE-Validation400",),
        ("Train/REFUGE1-train",),
        ("Train/REFUGE1-val",),
        ("train/images", "train/labels.csv"),
        ("train/images", "train/segmentations"),
    )
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download REFUGE from {HOMEPAGE}; {EXPECTED}."
    BUILDER_CONFIGS = [
        Config(name="default", description="Images and masks as they are."),
        Config(
            name="seg514",
            description="Images and masks stretched to 514 x 514, as SWCL has them.",
            square=514,
            rule="segmentation",
        ),
        Config(
            name="cls350",
            description="Shorter side 350; masks are not needed.",
            shorter=350,
            rule="classification",
        ),
        Config(
            name="seg512",
            description="Images and masks stretched to 512 x 512.",
            square=512,
            rule="segmentation",
        ),
    ]
    COUNTS = {
        name: {"train": 400, "validation": 400, "test": 400}
        for name in ("default", "seg514", "cls350", "seg512")
    }

    def features(self) -> dict[str, Any]:
        """Returns disc and cup, glaucoma, fovea, ratio of the heights, and the part of REFUGE."""
        return {
            "mask": tfds.features.LabeledImage(
                labels=["background", "disc", "cup"], shape=(None, None, 1)
            ),
            "label": tfds.features.ClassLabel(names=["normal", "glaucoma"]),
            "fovea": tfds.features.Tensor(shape=(2,), dtype=np.float32),
            "vcdr": tfds.features.Scalar(np.float32),
            "source": tfds.features.Text(),
        }

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads the three parts, wherever they lie."""
        return {
            split: self.part(tree, source, split)
            for split, source in zip(("train", "validation", "test"), PARTS, strict=True)
        }

    def part(self, tree: Tree, source: str, split: str) -> list[Item]:
        """Returns the items of one of PARTS, for a split.

        Raises:
            DatasetLayoutError: Something is missing or no label.
        """
        flattened = tree.find("train/images") is not None
        known = (self._flattened if flattened else self._official)(tree, PARTS[source], split)
        return self.matched(tree, known, source, split)

    def matched(self, tree: Tree, known: Known, source: str, split: str) -> list[Item]:
        """Returns the items of photographs of which all is there.

        Raises:
            DatasetLayoutError: E_ORPHAN.
        """
        needed: dict[str, Mapping[str, Any]] = {
            what: found
            for what, found in (
                ("image", known.images),
                ("mask", known.masks),
                ("label", known.labels),
                ("row with its fovea", known.foveas),
            )
            if found is not None
        }
        names = sorted(set().union(*needed.values()))
        for what, found in needed.items():
            missing = [name for name in names if name not in found]
            self.refuse_orphans(tree, missing, len(names), what)
        items = []
        for name in names:
            if not all(name in found for found in needed.values()):
                continue
            image = known.images[name]
            files = {"image": image}
            if known.masks is not None:
                files["mask"] = known.masks[name]
            values = {
                "image_id": image.stem,
                "patient_id": "",
                "eye": "unknown",
                "label": UNLABELLED if known.labels is None else known.labels[name],
                "fovea": (-1.0, -1.0) if known.foveas is None else known.foveas[name],
                "source": source,
            }
            items.append(Item(f"{split}/{image.stem}", files, values))
        return items

    def _official(self, tree: Tree, part: Part, split: str) -> Known:
        """Reads a part as the organizers distribute it, alone or in REFUGE-2's package."""
        packages = (f"Train/{part.package}", part.package)
        places = ("", *(f"{package}/" for package in packages))
        photographs = _descend(
            tree.folder(*(place + name for place in places for name in part.images)), part.images
        )
        truths = (*(place + part.truth for place in places), *packages)
        truth = next((tree.folder(name) for name in truths if tree.has(name)), None)
        if truth is None and (split != "test" or tree.packed(part.truth)):
            tree.missing(f"the folder {part.truth}", (part.truth,))
        truth = None if truth is None else _descend(truth, (part.truth,))
        if truth is None or not any(map(truth.has, (_MASKS, *part.table))):
            tree.fail(
                "E_NO_TEST_GT",
                f"the photographs of {part.images[0]} come without masks and labels",
                found=[place.name for place in (truth or tree).entries.values()],
                expected=f"{part.truth}/ with {_MASKS}/ and {part.table[0]}",
                fix=f"Download {part.truth}.zip from the same site and unpack it there.",
            )
        images, labels = self._by_class(photographs, ".jpg", ".jpeg")
        table = self._rows(truth, part, labels is None)
        return Known(
            images,
            self._masks(truth, _MASKS),
            labels if labels is not None or table is None else table[0],
            None if table is None else table[1],
        )

    def _flattened(self, tree: Tree, part: Part, split: str) -> Known:
        """Reads a part of SWCL's preparation: images, segmentations, and labels.csv."""
        place = tree.folder(*part.flattened)
        images, _ = self._by_class(place.folder("images"), ".jpg", ".jpeg")
        masks = self._masks(place, "segmentations")
        if self._unneeded("segmentation", place, "labels.csv"):
            return Known(images, masks, None, None)
        path = place.file(
            "labels.csv", fix="Put the table there, or prepare medinit_refuge/seg514 without it."
        )
        table = read_table(place, path, {"image": _IMAGE, "label": _LABEL})
        rows = self._by_name(place, path, table)
        labels = {name: integer(place, path, row, "label", (0, 1)) for name, row in rows.items()}
        return Known(images, masks, labels, None)

    def _unneeded(self, rule: str, tree: Tree, name: str) -> bool:
        """Says whether something is absent that the config's rule does without."""
        absent = self.builder_config.rule == rule and not tree.has(name) and not tree.packed(name)
        if absent:
            logging.warning("%s has no %s; %s does without.", tree.path, name, rule)
        return absent

    def _masks(self, tree: Tree, name: str) -> Files | None:
        if self._unneeded("classification", tree, name):
            return None
        fix = "Put the masks there, or prepare medinit_refuge/cls350, which needs none."
        return self._by_class(tree.folder(name, fix=fix), ".bmp", ".png")[0]

    def _by_class(self, tree: Tree, *suffixes: str) -> tuple[Files, dict[str, int] | None]:
        """Returns {name: file} and {name: class}, from folders of the classes if there are any."""
        divided = any(map(tree.has, sum(_CLASSES, ())))
        folders = [tree.folder(*names) for names in _CLASSES] if divided else [tree]
        found = [
            {normal(stem): path for stem, path in folder.files(*suffixes).items()}
            for folder in folders
        ]
        if not all(found):
            folders[found.index({})].missing("any file", suffixes)
        files = {name: path for part in found for name, path in part.items()}
        labels = {name: label for label, part in enumerate(found) for name in part}
        return files, labels if divided else None

    def _rows(
        self, tree: Tree, part: Part, with_label: bool
    ) -> tuple[dict[str, int] | None, dict[str, tuple[float, float]]] | None:
        """Reads labels, unless folders tell them, and foveas; None: there is no table."""
        if not any(map(tree.has, part.table)) and self._unneeded(
            "segmentation", tree, part.table[0]
        ):
            return None
        path = tree.file(*part.table)
        columns = {"image": _IMAGE, **_FOVEA, **({"label": _LABEL} if with_label else {})}
        rows = self._by_name(tree, path, read_table(tree, path, columns))
        foveas = {
            # The files count pixels from 1.
            name: (self._pixel(tree, path, row, "x"), self._pixel(tree, path, row, "y"))
            for name, row in rows.items()
        }
        if not with_label:
            return None, foveas
        labels = {name: integer(tree, path, row, "label", (0, 1)) for name, row in rows.items()}
        return labels, foveas

    def _by_name(self, tree: Tree, path: epath.Path, table: Sequence[Row]) -> dict[str, Row]:
        rows: dict[str, Row] = {}
        for row in table:
            name = normal(str(row["image"])).removesuffix(".jpg")
            if not name or name in rows:
                tree.fail(
                    "E_LABEL_RANGE",
                    f"row {row['row']} has {'a second' if name else 'no'} image {name}".rstrip(),
                    path=path,
                    found=[repr(row["image"])],
                    expected="the name of an image, once",
                    fix="Restore the original table.",
                )
            rows[name] = row
        return rows

    def _pixel(self, tree: Tree, path: epath.Path, row: Row, name: str) -> float:
        """Returns a coordinate from 0, or -1 where the cell is empty."""
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

    def example(self, item: Item) -> dict[str, Any]:
        """Decodes a photograph and its mask, measures the cup and moves the fovea."""
        image = self.read_image(item.files["image"])
        size = image.shape[:2]
        if "mask" in item.files:
            gray = self.read_gray(item.files["mask"])
            self.check_mask(item.files["mask"], gray, size, _LEVELS)
            mask = (gray <= 192).astype(np.uint8) + (gray <= 64)
            ratio = cup_to_disc(mask)
        else:
            mask, ratio = np.full(size, UNLABELLED_PIXEL, np.uint8), -1.0
        mask = self.resized(mask, nearest=True)
        return {
            **item.values,
            **self.stored_image(image, item.files["image"]),
            "mask": png(mask),
            "fovea": moved(item.values["fovea"], size, mask.shape),
            "vcdr": np.float32(ratio),
        }


def cup_to_disc(mask: np.ndarray) -> float:
    """Returns the height of the cup by that of the disc, which holds the cup.

    Args:
        mask: uint8 (H, W), 0 background, 1 disc, 2 cup.

    Returns:
        0 without a cup, -1 without a disc.
    """
    disc, cup = (np.flatnonzero((mask >= least).any(axis=1)) for least in (1, 2))
    if not len(disc):
        return -1.0
    return (np.ptp(cup) + 1) / (np.ptp(disc) + 1) if len(cup) else 0.0


def moved(
    point: tuple[float, float], size: tuple[int, ...], new_size: tuple[int, ...]
) -> np.ndarray:
    """Returns where a point lies after its image was resized.

    Args:
        point: x and y in pixels, (0, 0) the center of the first; negative: unknown.
        size: Height and width of the image.
        new_size: Height and width it was resized to.

    Returns:
        float32 (2,), x and y.
    """
    if min(point) < 0:
        return np.full(2, -1, np.float32)
    scale = np.array(new_size[::-1]) / np.array(size[::-1])
    return ((np.array(point) + 0.5) * scale - 0.5).astype(np.float32)


def _descend(tree: Tree, names: Sequence[str]) -> Tree:
    """Returns the innermost of folders in each other, as archives leave them."""
    inner = next((name for name in names if tree.has(name)), None)
    return tree if inner is None else _descend(tree.folder(inner), names)
