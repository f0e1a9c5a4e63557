"""Folds of a cross-validation, stratified by class, all images of a group in one fold."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from medinit_jax.core.errors import UsageError


def stratified_group_folds(
    labels: ArrayLike, groups: Sequence | np.ndarray, k: int, seed: int = 0
) -> np.ndarray:
    """Deals groups to folds so that every class is spread over the folds as evenly as can be.

    Groups are dealt one at a time, those that shift the classes most first, each to the fold after
    which the shares of the classes differ least between the folds; of equal folds the one with
    fewest images takes it. Which of equal groups comes first depends on the seed and its name.

    Args:
        labels: (n,) integers.
        groups: (n,) names, such as patients.
        k: number of folds.
        seed: chooses among divisions.

    Returns:
        int64 (n,) from 0 to k - 1.

    Raises:
        UsageError: there are fewer groups than folds, or less than 2 folds.

    Source: the rule of scikit-learn's `StratifiedGroupKFold`, which is the oracle of the test.
    """
    names, member = np.unique(np.asarray(groups).astype(str), return_inverse=True)
    classes, label = np.unique(np.asarray(labels), return_inverse=True)
    if label.shape != member.shape:
        raise UsageError(f"Every image needs a group: {member.shape} groups, {label.shape} labels.")
    if not 2 <= k <= len(names):
        raise UsageError(
            f"{len(names)} patients or groups cannot be dealt to {k} folds; take from 2 to "
            f"{len(names)} folds."
        )
    counts = np.zeros((len(names), len(classes)))
    np.add.at(counts, (member, label), 1)
    share = counts / counts.sum(0)
    digests = [hashlib.sha256(f"{seed}/fold/{name}".encode()).digest() for name in names]
    order = sorted(range(len(names)), key=lambda g: (-counts[g].std(), digests[g]))
    dealt, images = np.zeros((k, len(classes))), np.zeros(k)
    fold_of = np.zeros(len(names), np.int64)
    for group in order:
        spread = [
            np.std(dealt + share[group] * (np.arange(k) == fold)[:, None], axis=0).mean()
            for fold in range(k)
        ]
        # Rounding must not decide between folds that are equally good.
        best = min(range(k), key=lambda fold: (round(spread[fold], 12), images[fold], fold))
        dealt[best] += share[group]
        images[best] += counts[group].sum()
        fold_of[group] = best
    return fold_of[member]
