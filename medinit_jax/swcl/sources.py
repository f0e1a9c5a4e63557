"""The images that pretraining sees, and the labels of patches."""

from __future__ import annotations

from typing import Any

import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.data.draw import draw_missing
from medinit_jax.data.prepared import PreparedSource, manifest_of
from medinit_jax.data.sources import cached
from medinit_jax.data.tasks import make_builder
from medinit_jax.swcl.batches import Joined
from medinit_jax.swcl.labels import label_columns
from medinit_jax.swcl.patch_pairs import abnormality, one_sided, open_pairs


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
        return open_pairs(data.patches, data.data_dir)
    if not data.sets:
        raise UsageError("config.data.sets is empty; name prepared sets, separated by commas.")
    found = []
    for name in filter(None, (part.strip() for part in data.sets.split(","))):
        name, _, split = name.partition(":")
        builder = make_builder(name, data.data_dir)
        draw_missing(builder, name, console)
        splits = [split] if split else [s for s, n in manifest_of(builder)["splits"].items() if n]
        for one in splits:
            source = PreparedSource(builder, one, data.image_size, "crop")
            found.append(cached(source, data.cache_mb / len(splits)))
    return Joined(found)


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
    """Returns a warning where the threshold tells no patches apart; "" if it does."""
    if config.method == "swcl_image":
        return ""
    return one_sided(items.table.scores, config.loss.threshold)
