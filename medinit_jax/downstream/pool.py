"""Labeled images of a source, as networks that are fine-tuned see them."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import ml_collections
import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.data.augment import Augmentation
from medinit_jax.data.catalog import batch_options
from medinit_jax.data.pipeline import load_examples
from medinit_jax.data.sources import Source, patients_of
from medinit_jax.downstream.classify import Labeled
from medinit_jax.downstream.protocol import halves

LABELS = ("any", "class")
JUDGES = ("test", "val")


class Pool(NamedTuple):
    """Labeled images of the three splits.

    Attributes:
        train: Images whose labels may be seen, in parts of different size.
        patients: Patient of each of them.
        val: Images on which choices are made.
        test: Images that judge.
        classes: Number of classes.
    """

    train: Labeled
    patients: list[str]
    val: Labeled
    test: Labeled
    classes: int


def _spread(source: Source, limit: int, config: ml_collections.ConfigDict) -> np.ndarray:
    """Returns the numbers of so many images (0: of all) of a source."""
    count = len(source)
    wanted = min(limit or count, count)
    if config.data.source == "phantom":
        # Drawn in random order.
        return np.arange(wanted)
    # A folder's images lie by class: the first ones would be of one class.
    return np.arange(wanted) * count // max(wanted, 1)


def _mixed(labels: np.ndarray, seed: int) -> np.ndarray:
    """Returns an order in which no class comes first, as batch statistics need it."""
    order = np.arange(len(labels))
    if (np.diff(labels) < 0).any():
        return order
    return np.random.default_rng([seed, len(labels)]).permutation(order)


def open_pool(config: ml_collections.ConfigDict, sources: dict[str, Source]) -> Pool | None:
    """Reads the labeled images as networks see them: normalized, not augmented.

    Args:
        config: The experiment; `config.evaluate.downstream` says how many and which label.
        sources: Images by split.

    Returns:
        The pool, or None where images have no labels, or all the same.

    Raises:
        UsageError: If a key has a value that means nothing.
    """
    settings = config.evaluate.downstream
    if settings.label not in LABELS:
        raise UsageError(
            f"config.evaluate.downstream.label={settings.label!r}; set it to any (label above 0 "
            "against 0) or class (labels as they are)."
        )
    options = batch_options(config.data, config.seed)
    laterality = options.augmentation.normalize_laterality
    plain = dataclasses.replace(options, augmentation=Augmentation(normalize_laterality=laterality))
    parts, patients = {}, {}
    for split, limit in settings.images.items():
        source = sources[split]
        indices = _spread(source, limit, config)
        examples = load_examples(source, indices, plain)
        if "label" not in examples:
            return None
        # -1: unlabelled.
        known = np.flatnonzero(examples["label"] >= 0)
        if not len(known):
            return None
        known = known[_mixed(examples["label"][known], config.seed)]
        labels, indices = examples["label"][known], indices[known]
        labels = (labels > 0).astype(np.int32) if settings.label == "any" else labels
        parts[split] = Labeled(examples["image"][known], labels)
        if split != "test":
            names = patients_of(source)
            patients[split] = [names[int(i)] for i in indices]
    if settings.judge not in JUDGES:
        raise UsageError(
            f"config.evaluate.downstream.judge={settings.judge!r}; set it to {' or '.join(JUDGES)}."
        )
    if settings.judge == "val":
        # Images may lie by class, one after the other.
        held = parts["val"]
        both = halves(held.labels, patients["val"])
        parts["val"], parts["test"] = (held.subset(half) for half in both)
    if any(len(np.unique(part.labels)) < 2 for part in parts.values()):
        return None
    classes = 1 + max(int(part.labels.max()) for part in parts.values())
    return Pool(parts["train"], patients["train"], parts["val"], parts["test"], classes)
