"""Which images of a prepared set train, validate and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.folds import stratified_group_folds
from medinit_jax.downstream.heads import UNKNOWN, Head
from medinit_jax.downstream.protocol import label_subset, split_patients
from medinit_jax.finetune.examples import UNLABELLED_PIXEL, Layer, Records
from medinit_jax.finetune.labels import Column

# Folds that are made where a set brings none.
FOLDS = 5
_FEATURES = {"authors": "fold_swcl", "grouped": "fold"}
_RULES = (*_FEATURES, "made")


class Pool(NamedTuple):
    """The labelled images of a split of a prepared set.

    Attributes:
        records: The split.
        indices: int64 (n,), numbers of the labelled records.
        targets: {head: int32 (n,) or (n, classes)}.
        patients: Group, else patient, else a name of its own, of every image.
        ids: Name of every image.
        folds: {feature: int64 (n,)} of the folds that the set brings.
    """

    records: Records
    indices: np.ndarray
    targets: dict[str, np.ndarray]
    patients: list[str]
    ids: list[str]
    folds: dict[str, np.ndarray]

    @property
    def strata(self) -> np.ndarray:
        """The class by which parts are stratified, int64 (n,): the first head's, if there is one.

        Of several findings it is the first that is there.
        """
        if not self.targets:
            return np.zeros(len(self.indices), np.int64)
        first = next(iter(self.targets.values())).astype(np.int64)
        return first if first.ndim == 1 else (first == 1).argmax(1)


def read_pool(
    records: Records, columns: Sequence[Column], layers: Sequence[Layer], console: Console
) -> Pool:
    """Reads who and what the images of a split are, without decoding them.

    Args:
        records: The split.
        columns: Labels of a classification.
        layers: Heads of a segmentation.
        console: Where the number of images without a label is shown.
    """
    who = [name for name in ("group", "patient_id", "image_id") if records.has(name)]
    folds = [name for name in _FEATURES.values() if records.has(name)]
    drawn = ["vcdr"] if layers and records.has("vcdr") else []
    labels = list(dict.fromkeys(column.feature for column in columns))
    rows = records.columns([*who, *folds, *drawn, *labels])
    targets = {column.head.name: column.of(rows) for column in columns}
    labelled = np.ones(len(rows), bool)
    for target in targets.values():
        known = target != UNKNOWN
        labelled &= known if known.ndim == 1 else known.any(1)
    if layers:
        labelled = _masked(records, rows)
    kept = np.flatnonzero(labelled)
    if len(kept) < len(rows):
        console.print(
            f"{len(rows) - len(kept)} of {len(rows)} {records.split} images have no label and are "
            f"left out.",
            highlight=False,
            soft_wrap=True,
        )
    ids = [rows[i]["image_id"].decode() for i in kept]
    patients = [
        (rows[i].get("group") or rows[i]["patient_id"]).decode() or f"{records.split}/{name}"
        for i, name in zip(kept, ids, strict=True)
    ]
    return Pool(
        records,
        kept,
        {head: target[kept] for head, target in targets.items()},
        patients,
        ids,
        {name: np.array([int(rows[i][name]) for i in kept], np.int64) for name in folds},
    )


def _masked(records: Records, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Returns which records have a labelled pixel, bool (n,)."""
    labelled = np.ones(len(rows), bool)
    for index, row in enumerate(rows):
        # A cup-to-disc ratio tells that the disc was drawn; only masks without one are decoded.
        if float(row.get("vcdr", 0.0)) < 0:
            labelled[index] = bool((records.read(index, "mask") != UNLABELLED_PIXEL).any())
    return labelled


def divide(
    config: ml_collections.ConfigDict,
    heads: Sequence[Head],
    columns: Sequence[Column],
    pools: Mapping[str, Pool],
) -> dict[str, tuple[str, np.ndarray]]:
    """Divides the images of a set into parts; no part changes with the share of labels but train.

    Validation and test are the set's own where it has them. Otherwise the test images are a fold of
    the training images, and validation images are held out of those that remain; other splits are
    then not used.

    Args:
        config: `task`, `seed` and `protocol`, see `configs/finetune.py`.
        heads: What is predicted.
        columns: Labels of a classification; empty for a segmentation.
        pools: {split: its labelled images}.

    Returns:
        {"train", "validation", "test": (split, positions in its pool)}.

    Raises:
        UsageError: A part has no images, or lacks a class.
    """
    protocol = config.protocol
    if not 0 < protocol.fraction <= 1:
        raise UsageError(
            f"config.protocol.fraction is {protocol.fraction}; set it above 0 and at most to 1."
        )
    _refuse_empty(config.task, pools, "train")
    pool = pools["train"]
    strata, patients = pool.strata, np.array(pool.patients)
    everyone = np.arange(len(pool.indices))
    if protocol.fold >= 0:
        folds = fold_numbers(pool, config)
        test = ("train", np.flatnonzero(folds == protocol.fold))
        rest = np.flatnonzero(folds != protocol.fold)
    else:
        _refuse_empty(config.task, pools, "test")
        test, rest = ("test", np.arange(len(pools["test"].indices))), everyone
    if protocol.fold < 0 and "validation" in pools:
        _refuse_empty(config.task, pools, "validation")
        validation, train = ("validation", np.arange(len(pools["validation"].indices))), rest
    else:
        share = protocol.validation
        if not 0 < share < 1:
            raise UsageError(
                f"config.protocol.validation is {share}; set it between 0 and 1, for {config.task} "
                f"has no validation images of its own."
            )
        held = split_patients(
            strata[rest],
            patients[rest],
            {"train": 1 - share, "validation": share},
            protocol.split_seed,
        )
        validation, train = ("train", rest[held["validation"]]), rest[held["train"]]
    if protocol.fraction < 1:
        seen = label_subset(strata[train], patients[train], protocol.fraction, config.seed)
        train = train[seen]
    parts = {"train": ("train", train), "validation": validation, "test": test}
    if columns and config.data.target == "label":
        for part, (split, chosen) in parts.items():
            for head in heads:
                there = _present(head, pool.targets[head.name]) if part == "train" else None
                target = pools[split].targets[head.name][chosen]
                _refuse_missing(config.task, part, head, target, there)
    return parts


def fold_numbers(pool: Pool, config: ml_collections.ConfigDict) -> np.ndarray:
    """Returns the fold of every image of a pool, int64 (n,).

    Args:
        pool: The training images of a set.
        config: `protocol.folds`: "authors", "grouped" or "made"; `protocol.fold` and
            `protocol.split_seed`.

    Raises:
        UsageError: The set brings no such folds, or has no such fold.
    """
    protocol, name = config.protocol, pool.records.name
    if protocol.folds not in _RULES:
        raise UsageError(
            f"config.protocol.folds is {protocol.folds!r}; set it to one of: {', '.join(_RULES)}."
        )
    feature = _FEATURES.get(protocol.folds)
    if feature in pool.folds:
        folds = pool.folds[feature]
    elif protocol.folds == "authors":
        raise UsageError(f"{name} brings no folds of its authors; set config.protocol.folds=made.")
    else:
        folds = stratified_group_folds(pool.strata, pool.patients, FOLDS, protocol.split_seed)
    known = np.unique(folds).tolist()
    if protocol.fold not in known:
        raise UsageError(
            f"{name} has no fold {protocol.fold}; set config.protocol.fold to one of: "
            f"{', '.join(map(str, known))}."
        )
    return folds


def _refuse_empty(task: str, pools: Mapping[str, Pool], split: str) -> None:
    if split not in pools:
        remedy = (
            f"set config.protocol.fold to 0 to {FOLDS - 1} to test on a fold of its training images"
            if split == "test"
            else "choose another config.task"
        )
        raise UsageError(f"{task} has no {split} images; {remedy}.")
    if len(pools[split].indices) == 0:
        raise UsageError(
            f"No {split} image of {task} has a label; choose another config.task, or another label "
            f"with config.labels."
        )


def _present(head: Head, target: np.ndarray) -> np.ndarray:
    """Returns how often each class occurs, int64 (classes,)."""
    if head.kind == "sigmoid":
        return (target == 1).sum(0)
    return np.bincount(target[target != UNKNOWN], minlength=len(head.classes))


def _refuse_missing(
    task: str, part: str, head: Head, target: np.ndarray, there: np.ndarray | None
) -> None:
    """Raises if a part cannot teach or judge a head.

    Training needs every class that the images `there` have, whose subset it is; to judge takes at
    least two classes, of several findings one that is there and not there.
    """
    counts = _present(head, target)
    shown = ", ".join(f"{c} {n}" for c, n in zip(head.classes, counts.tolist(), strict=True))
    if there is not None:
        absent = [c for c, n, m in zip(head.classes, counts, there, strict=True) if m and not n]
        if absent:
            raise UsageError(
                f"The {part} part of {task} has no image of {head.name} {absent[0]} ({shown}); "
                f"raise config.protocol.fraction, or change config.protocol.split_seed."
            )
        return
    if head.kind == "sigmoid":
        judged = ((counts > 0) & ((target == 0).sum(0) > 0)).any()
    else:
        judged = (counts > 0).sum() > 1
    if not judged:
        raise UsageError(
            f"The {part} part of {task} has fewer than two classes of {head.name} ({shown}); take "
            f"more images, or change config.protocol.fold or config.protocol.split_seed."
        )
