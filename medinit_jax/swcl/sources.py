"""The images that pretraining sees, and the labels of patches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.phantom import PhantomConfig
from medinit_jax.data.builders.table import TableConfig
from medinit_jax.data.draw import draw_missing
from medinit_jax.data.prepared import PreparedSource, manifest_of
from medinit_jax.data.sources import Subset, cached
from medinit_jax.data.tasks import make_builder
from medinit_jax.finetune.examples import Cache
from medinit_jax.losses.labels import label_columns
from medinit_jax.swcl.batches import Joined
from medinit_jax.swcl.patch_pairs import PatchPairs, abnormality, one_sided, open_pairs
from medinit_jax.swcl.settings import reads_threshold

_NO_NAME = re.compile(r"[_/\s]+")


def open_items(config: ml_collections.ConfigDict, images: str, console: Console) -> Any:
    """Opens pairs of patches, or whole images.

    Args:
        config: `data`, see `configs/swcl.py`.
        images: "pairs" or "whole".
        console: Where progress is shown.

    Raises:
        UsageError: A set is not there, or names no images.
    """
    data = config.data
    if images == "pairs":
        if not data.patches:
            raise UsageError(
                "config.data.patches is empty; set it to the workdir of configs/patches.py, to "
                "retinal_swap/NAME, or to a folder in the layout of SWCL's authors."
            )
        # Every process that reads ahead keeps its own.
        return KeptPairs(
            open_pairs(data.patches, data.data_dir), data.cache_mb / (1 + data.workers)
        )
    if not data.sets:
        raise UsageError("config.data.sets is empty; name prepared sets, separated by commas.")
    splits = open_splits("config.data.sets", data.sets, data.data_dir, console)
    firsts, parts = Firsts(console), []
    for builder, split in splits:
        source = PreparedSource(builder, split, data.image_size, "crop")
        kept = firsts.of(builder, split, source.columns(["image_id"])["image_id"])
        whole = len(kept) == len(source)
        parts.append(source if whole else Subset(source, kept, "without repeats"))
    return Joined([cached(part, data.cache_mb / len(parts)) for part in parts])


class KeptPairs:
    """Pairs whose patches are decoded once and kept in memory, as far as they fit.

    Args:
        pairs: The pairs.
        limit_mb: Most megabytes of pixels.
    """

    def __init__(self, pairs: PatchPairs, limit_mb: float):
        self.table, self._pairs, self._cache = pairs.table, pairs, Cache(limit_mb)

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self._pairs)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns the patches of one pair: `left` and `right`, uint8 (S, S, 3)."""

        def read() -> tuple[np.ndarray, ...]:
            pair = self._pairs[index]
            return pair["left"], pair["right"]

        left, right = self._cache.get(index, read)
        return {"left": left, "right": right}

    def describe(self) -> dict[str, Any]:
        """Returns the description of the pairs."""
        return self._pairs.describe()


class Firsts:
    """Knows which images of sets came before, so that none counts twice.

    EyePACS, for one, has a split `sample` of photographs that are in `train`, too.
    """

    def __init__(self, console: Console):
        """Begins with none; what is left out is shown on the console."""
        self._console = console
        self._seen: set[str] = set()

    def of(self, builder: Builder, split: str, names: Sequence[str]) -> np.ndarray:
        """Returns the numbers of the images that did not come before, int64.

        Args:
            builder: Their set.
            split: Their split.
            names: Of all images of the split.
        """
        whole = [f"{source_name(builder)}/{name}" for name in names]
        kept = [i for i, name in enumerate(whole) if name not in self._seen]
        self._seen.update(whole)
        if len(kept) < len(names):
            self._console.print(
                f"{len(names) - len(kept)} of {len(names)} images of {builder.name} {split} came "
                "before and are left out.",
                highlight=False,
                soft_wrap=True,
            )
        return np.array(kept, np.int64)


def open_splits(key: str, names: str, data_dir: str, console: Console) -> list[tuple[Builder, str]]:
    """Opens prepared sets; phantoms that are missing are drawn.

    Args:
        key: The setting, for errors.
        names: Sets, separated by commas, "NAME:SPLIT" for one split only.
        data_dir: Where they are prepared.
        console: Where progress is shown.

    Returns:
        Set and split of each that has images, in the order of their names.

    Raises:
        UsageError: A set or split is not there, has no images, or is named twice.
    """
    found: dict[tuple[str, str], tuple[Builder, str]] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        name, _, only = name.partition(":")
        builder = make_builder(name, data_dir)
        draw_missing(builder, name, console)
        held = {split: n for split, n in manifest_of(builder)["splits"].items() if n}
        if not held or (only and only not in held):
            raise UsageError(
                f"{key} names {name}{':' * bool(only)}{only}, which has no images; its splits are "
                f"{', '.join(held) or 'all empty'}."
            )
        for split in [only] if only else held:
            place = str(builder.data_path), split
            if place in found:
                raise UsageError(f"{key} names the split {split} of {name} twice; name it once.")
            found[place] = builder, split
    return list(found.values())


def source_name(builder: Builder) -> str:
    """Returns what the names of patches call a set, as "eyepacs", "oia-odir", "odir-phantom".

    Sets of one name hold the same images, if in other sizes or shares; those of others never do:
    every twin, and every table, counts its images anew.
    """
    config, name = builder.builder_config, builder.name.removeprefix("medinit_")
    if isinstance(config, PhantomConfig):
        name = f"{config.task}-phantom"
    elif isinstance(config, TableConfig):
        name = f"table-{config.name}"
    return plain_name(name)


def plain_name(text: str) -> str:
    """Returns a name with dashes in the place of what parts the names of patches."""
    return _NO_NAME.sub("-", text)


def label_table(config: ml_collections.ConfigDict, items: Any) -> dict[str, np.ndarray]:
    """Returns the labels of patches, int32 (pairs, 2, ...) of left and right eye, by name.

    "position", "abnormality", "patient", and "columns", those that `config.loss.scheme` compares.

    Raises:
        UsageError: There is no such scheme or threshold, or photographs lack the labels that
            method swcl_image takes.
    """
    table = items.table
    if config.method == "swcl_image":
        if (table.labels < 0).any():
            missing = int((table.labels < 0).any(1).sum())
            raise UsageError(
                f"{missing} pairs of config.data.patches come from photographs without a label, "
                "which config.method=swcl_image takes for their patches; label them, or choose "
                "another method."
            )
        abnormal = table.labels.astype(np.int32)
    else:
        abnormal = abnormality(table.scores, config.loss.threshold)
    position = np.repeat(table.positions.astype(np.int32)[:, None], 2, 1)
    patient = np.repeat(table.patients.astype(np.int32)[:, None], 2, 1)
    columns = label_columns(config.loss.scheme, position.ravel(), abnormal.ravel(), patient.ravel())
    return {
        "position": position,
        "abnormality": abnormal,
        "patient": patient,
        "columns": columns.reshape(len(position), 2, -1),
    }


def threshold_warning(config: ml_collections.ConfigDict, items: Any) -> str:
    """Returns a warning where the threshold counts and tells no patches apart; else ""."""
    if not reads_threshold(config):
        return ""
    return one_sided(items.table.scores, config.loss.threshold)
