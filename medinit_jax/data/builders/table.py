"""Any other data: images and masks that a table of the user's own lists."""

from __future__ import annotations

import collections
import dataclasses
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.core.errors import UsageError
from medinit_jax.data import nifti
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.image_files import png
from medinit_jax.data.decode import DecodeError, MaskError, decode_mask, medical_kind
from medinit_jax.data.image_table import (
    TABLE_SUFFIXES,
    Columns,
    ImageRow,
    ImageTable,
    find_table,
    read_image_table,
)
from medinit_jax.data.layout import Tree, locate
from medinit_jax.data.manifest import read_manifest
from medinit_jax.data.sources import divide_names

SPLITS = ("train", "validation", "test")
# As all sets name them on disk.
_WRITTEN = {"val": "validation"}
# The name of a config is that of its folder, too.
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
# How a table becomes a set.
HOW_TO = (
    "python -m medinit_jax.data prepare medinit_table/{name} --from DIR_OR_TABLE "
    "--columns image=file,labels=grade,patient=subject"
)
# A mask with more levels than classes can be is a photograph, or was saved as JPEG.
_MOST_LEVELS = 64
# Key of an item's values: which slice of a volume it is.
_SLICE = "slice"


@dataclasses.dataclass(kw_only=True)
class TableConfig(Config):
    """How a table is read.

    Attributes:
        columns: Which column holds what.
        table: Name of the table; "" takes the only one in the folder.
        shares: Shares of the groups in train, validation and test, where no column tells the split.
        mask_levels: Gray levels of the classes of a mask, in their order; empty keeps levels.
    """

    columns: Columns = Columns()
    table: str = ""
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1)
    mask_levels: tuple[int, ...] = ()

    def __post_init__(self):
        """Refuses a name that is no name of a folder."""
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} is no name for a table; use letters, digits, '_', '-' and '.', "
                f"with no '.' at the beginning, as medinit_table/mine."
            )


class MedinitTable(Builder):
    """Images listed in a table (CSV, XLSX or XLS), with labels and masks as it says.

    Of a NIfTI volume every axial slice is an image with the labels of the row, NAME#SLICE.

    The names of the classes are in `info.metadata["classes"]`, {label: names}.
    """

    MODALITY = "your own"
    LICENSE = "Your own images."
    SIZE = "nothing to download"
    EXPECTED = "a table (.csv, .tsv, .xlsx or .xls) and the images that it lists"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Name a folder that holds {EXPECTED}, or the table itself."
    BUILDER_CONFIGS = [
        TableConfig(
            name="default",
            description="The columns image and label.",
            columns=Columns(labels=("label",)),
        )
    ]

    @classmethod
    def config_named(cls, name: str, data_dir: epath.PathLike) -> Config | None:
        """Returns a config of this name; one that was prepared is found by its manifest."""
        if not _NAME.fullmatch(name):
            return None
        manifest = read_manifest(epath.Path(data_dir) / cls.name / name / str(cls.VERSION))
        if manifest is None:
            return super().config_named(name, data_dir)
        settings = manifest["config"]
        columns: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in settings.pop("columns").items()
        }
        for key in ("shares", "mask_levels"):
            settings[key] = tuple(settings[key])
        return TableConfig(**settings, columns=Columns(**columns))

    def __init__(self, *, classes: Mapping[str, tuple[str, ...]] | None = None, **options: Any):
        """Makes a builder.

        Args:
            classes: Names of the classes of every label, as `items` finds them.
            **options: See `Builder`. As `config` give a `TableConfig` with a name of its own.
        """
        super().__init__(**options)
        self._table = ""
        if classes:
            self._name_classes(classes)

    def _name_classes(self, classes: Mapping[str, tuple[str, ...]]) -> None:
        # The builders of worker processes are made with them.
        self._own_options["classes"] = classes  # type: ignore[assignment]
        features, metadata = self.info.features, self.info.metadata
        if "label" in features:
            (names,) = classes.values()
            features["label"].names = list(names)
        assert metadata is not None
        metadata["classes"] = {label: list(names) for label, names in classes.items()}

    def features(self) -> dict[str, Any]:
        """Returns `label`, or `labels` of several columns or findings, `mask` and `group`."""
        config = self.builder_config
        features: dict[str, Any] = {}
        if len(config.columns.labels) == 1 and not config.columns.separator:
            features["label"] = tfds.features.ClassLabel()
        elif config.columns.labels:
            features["labels"] = tfds.features.Tensor(shape=(None,), dtype=np.int32)
        if config.columns.mask and config.mask_levels:
            features["mask"] = tfds.features.LabeledImage(
                labels=[f"level {level}" for level in config.mask_levels], shape=(None, None, 1)
            )
        elif config.columns.mask:
            features["mask"] = tfds.features.Image(shape=(None, None, 1))
        if config.columns.group:
            features["group"] = tfds.features.Text()
        return features

    def locate(self, folder: epath.PathLike) -> Tree:
        """Finds the table; `folder` may also be the table's file itself."""
        path = epath.Path(folder)
        if path.suffix.lower() in TABLE_SUFFIXES and not path.is_dir():
            if not os.path.isfile(path):
                self.fail(
                    "E_MISSING_ROOT",
                    "no such table",
                    path,
                    expected=self.EXPECTED,
                    fix="Name a table that exists, or the folder that holds it, with --from.",
                )
            self._table = path.name
            return Tree(self.name, path.parent)
        wanted = self.builder_config.table

        def is_root(tree: Tree) -> bool:
            if wanted:
                return tree.has(wanted)
            return any(place.suffix.lower() in TABLE_SUFFIXES for place in tree.entries.values())

        return locate(self.name, path, is_root, self.EXPECTED, "")

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads the table and divides its rows."""
        config = self.builder_config
        path = find_table(tree, self._table or config.table)
        table = read_image_table(tree, path, config.columns)
        total = len(table.rows) + len(table.without_image) + len(table.without_mask)
        self.refuse_orphans(tree, table.without_image, total, "image")
        self.refuse_orphans(tree, table.without_mask, total, "mask")
        if not table.rows:
            tree.fail(
                "E_COUNT",
                "the table lists no image that is there",
                path=path,
                found=[f"{total} rows"],
                expected="at least one row with an image",
                fix="Write one row for each image.",
            )
        self._note(table)
        if table.labels:
            self._name_classes(table.labels)
        split_of = self._divided(tree, table)
        stems = [_stem(row.name) for row in table.rows]
        times = collections.Counter(stems)
        splits: dict[str, list[Item]] = {}
        for row, stem in zip(table.rows, stems, strict=True):
            split = _WRITTEN.get(row.split, row.split) or split_of[row.group]
            name = stem if times[stem] == 1 else row.name
            items = splits.setdefault(split, [])
            if any(place and _is_volume(place) for place in (row.image, row.mask)):
                items += self._slices(tree, table, row, split, name)
            else:
                items.append(self._item(row, split, name))
        return splits

    def _slices(
        self, tree: Tree, table: ImageTable, row: ImageRow, split: str, name: str
    ) -> list[Item]:
        """Returns an item for each slice of a volume."""
        if row.mask is not None:
            tree.fail(
                "E_MASK_VALUES",
                f"row {row.row} has a volume with a mask, which is not read",
                path=table.path,
                found=[row.image.name, row.mask.name],
                expected="volumes without masks, or single images with them",
                fix="Save the slices and their masks as PNG, with a row for each slice.",
            )
        try:
            count = nifti.slices(Path(row.image))
        except DecodeError as error:
            if self.on_corrupt != "skip":
                self.unreadable(row.image, row.image.read_bytes(), str(error))
            # Reading its first slice fails too, so it is counted and listed as one file.
            count = 1
        slices = [self._item(row, split, f"{name}#{number:03d}") for number in range(count)]
        return [
            one._replace(values={**one.values, _SLICE: number}) for number, one in enumerate(slices)
        ]

    def _item(self, row: ImageRow, split: str, name: str) -> Item:
        files = {"image": row.image}
        if row.mask is not None:
            files["mask"] = row.mask
        values: dict[str, Any] = {"image_id": name, "patient_id": row.patient, "eye": row.eye}
        if self.builder_config.columns.group:
            values["group"] = row.group
        if "label" in self.info.features:
            (values["label"],) = row.labels
        elif row.labels:
            values["labels"] = np.array(row.labels, np.int32)
        return Item(f"{split}/{name}", files, values)

    def _note(self, table: ImageTable) -> None:
        unlisted = [f"{name}: in no row" for name in table.unlisted]
        self.ignored += [*table.repeated, *unlisted]
        self.notes += table.first_frames
        for found, what in (
            (table.repeated, "rows say the same as others and are left out"),
            (unlisted, "files are left out"),
            (table.first_frames, "DICOM files have several frames"),
        ):
            if found:
                logging.warning("%d %s: %s ...", len(found), what, "; ".join(found[:3]))

    def _divided(self, tree: Tree, table: ImageTable) -> dict[str, str]:
        """Returns the split of every group where the table brings none."""
        config = self.builder_config
        if config.columns.split:
            return {}
        groups = sorted({row.group for row in table.rows})
        parts = divide_names(groups, config.shares, config.split_seed)
        for split, share, part in zip(SPLITS, config.shares, parts, strict=True):
            if share and not part:
                tree.fail(
                    "E_COUNT",
                    f"{len(groups)} patients or groups are too few for a {split} part",
                    path=table.path,
                    found=[f"shares {config.shares}"],
                    expected="at least one patient or group in each part",
                    fix="Add images, or name a column with the split: --columns split=COLUMN,...",
                )
        return {name: split for split, part in zip(SPLITS, parts, strict=True) for name in part}

    def example(self, item: Item) -> dict[str, Any]:
        """Decodes an image and its mask."""
        path, values = item.files["image"], dict(item.values)
        number = values.pop(_SLICE, None)
        image = self.read_image(path) if number is None else self._read_slice(path, number)
        example = {**values, **self.stored_image(image, path)}
        if "mask" in item.files:
            mask = self._read_mask(item.files["mask"], image.shape[:2])
            example["mask"] = png(self.resized(mask, nearest=True))
        return example

    def _read_slice(self, path: epath.Path, number: int) -> np.ndarray:
        try:
            return nifti.read_slice(Path(path), number)
        except DecodeError as error:
            self.unreadable(path, path.read_bytes(), str(error))

    def _read_mask(self, path: epath.Path, size: tuple[int, int]) -> np.ndarray:
        content = self.read_file(path)
        levels = self.builder_config.mask_levels
        try:
            mask = decode_mask(content)
        except MaskError as error:
            self.fail(
                "E_MASK_VALUES",
                f"{path.name} is no mask ({error})",
                path,
                found=["another kind of image"],
                expected="one level for each class",
                fix="Save the mask as PNG, with the number of the class in every pixel.",
            )
        except DecodeError as error:
            self.unreadable(path, content, str(error))
        if levels:
            self.check_mask(path, mask, size, levels, most=0.0)
            place = np.abs(np.arange(256)[:, None] - np.array(levels)).argmin(axis=1)
            return place.astype(np.uint8)[mask]
        found = np.unique(mask)
        # Any level may be a class, but not so many; then what is checked is the size.
        few = found[:_MOST_LEVELS] if len(found) > _MOST_LEVELS else found
        self.check_mask(path, mask, size, few.tolist(), most=0.0)
        return mask


def _is_volume(place: epath.Path) -> bool:
    return medical_kind(Path(place)) == "nifti"


def _stem(name: str) -> str:
    end = len(".nii.gz") if name.lower().endswith(".nii.gz") else len(PurePosixPath(name).suffix)
    return name[: len(name) - end]
