"""Which features of a prepared set a task predicts, and by which heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders import odir_keywords, rsna_ihd
from medinit_jax.data.builders.base import Builder
from medinit_jax.downstream.heads import UNKNOWN, Head
from medinit_jax.finetune.examples import Layer

# Classes of features that hold 0 or 1 for each of several findings.
_FINDINGS = {
    "labels8": odir_keywords.CLASSES,
    "eye_labels8": odir_keywords.CLASSES,
    "labels": rsna_ihd.SUBTYPES,
}


class Column(NamedTuple):
    """Where the targets of a head are.

    Attributes:
        head: The head.
        feature: Feature of the set.
        place: Which entry of the feature; None: all of it.
    """

    head: Head
    feature: str
    place: int | None = None

    def of(self, rows: Sequence[dict[str, Any]]) -> np.ndarray:
        """Returns the targets of rows, int32 (n,) or (n, classes)."""
        values = [np.asarray(row[self.feature]) for row in rows]
        if self.place is not None:
            values = [value[self.place] for value in values]
        classes = (len(self.head.classes),) if self.head.kind == "sigmoid" else ()
        targets = np.asarray(values, np.int64).reshape(len(rows), *classes)
        return np.where(targets < 0, UNKNOWN, targets).astype(np.int32)


def label_columns(builder: Builder, wanted: Sequence[str]) -> list[Column]:
    """Returns the columns of labels, in the order in which they are wanted.

    Args:
        builder: The set.
        wanted: Names of features, or of the columns of a table; empty: `label`, else `labels`, else
            all labels of a table.

    Raises:
        UsageError: There is no such label.
    """
    known = _known(builder)
    default = [name for name in ("label", "labels") if name in known][:1] or list(
        _in_table(builder)
    )
    names = list(wanted) or default
    missing = [name for name in names if name not in known]
    if missing or not names:
        what = f"label {missing[0]!r}" if missing else "label of its own"
        raise UsageError(
            f"{builder.name}/{builder.builder_config.name} has no {what}; set config.labels to "
            f"some of: {', '.join(known) or 'none, it has no labels'}."
        )
    return [known[name] for name in names]


def _in_table(builder: Builder) -> dict[str, tuple[str, ...]]:
    """Returns {column: its classes} of a table."""
    metadata = builder.info.metadata or {}
    return {name: tuple(map(str, names)) for name, names in metadata.get("classes", {}).items()}


def _known(builder: Builder) -> dict[str, Column]:
    features, columns = builder.info.features, _in_table(builder)
    known: dict[str, Column] = {}
    for name, feature in features.items():
        if isinstance(feature, tfds.features.ClassLabel) and name not in ("eye", "fov_source"):
            known[name] = Column(Head(name, tuple(feature.names)), name)
        elif name in _FINDINGS and feature.shape == (len(_FINDINGS[name]),):
            known[name] = Column(Head(name, tuple(_FINDINGS[name]), "sigmoid"), name)
    if columns and "label" in features:
        (column,) = columns
        known[column] = Column(Head(column, columns[column]), "label")
    elif columns and builder.builder_config.columns.separator:
        known["labels"] = Column(Head("labels", tuple(columns), "sigmoid"), "labels")
    elif columns:
        for place, (name, classes) in enumerate(columns.items()):
            known[name] = Column(Head(name, classes), "labels", place)
    return known


def mask_heads(builder: Builder, rule: str) -> tuple[tuple[Head, ...], tuple[Layer, ...]]:
    """Returns the heads of a segmentation, and which classes of the mask they are.

    Discs hold cups, so both get a head; of other masks every class but the first gets one.

    Args:
        builder: The set.
        rule: "joint".

    Raises:
        UsageError: The set has no masks, or the rule is none.
    """
    name = f"{builder.name}/{builder.builder_config.name}"
    if rule != "joint":
        raise UsageError(f"config.heads is {rule!r}; set it to joint, a head for each structure.")
    features = builder.info.features
    if "mask" not in features:
        raise UsageError(
            f"{name} has no masks to segment; choose another config.task, or a config.data.recipe "
            f"for classification."
        )
    feature = features["mask"]
    if not isinstance(feature, tfds.features.LabeledImage):
        raise UsageError(
            f"The masks of {name} do not tell their classes; prepare it in Python with their gray "
            f"levels, as TableConfig(mask_levels=(0, 255), ...)."
        )
    first, *others = feature.names
    layers = [Layer(other, place, place) for place, other in enumerate(others, 1)]
    if others == ["disc", "cup"]:
        layers[0] = Layer("disc", 1, 2)
    return tuple(Head(layer.head, (first, layer.head)) for layer in layers), tuple(layers)
