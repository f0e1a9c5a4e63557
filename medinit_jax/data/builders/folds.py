"""Folds of a cross-validation, fixed when a dataset is prepared."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def stratified_folds(
    labels: Sequence[Hashable], folds: int, seed: int | None, groups: Sequence[Hashable] = ()
) -> np.ndarray:
    """Returns the fold of every example, each class spread over all folds as evenly as can be.

    Without groups these are the test folds of scikit-learn's `StratifiedKFold`, shuffled with
    `random_state=seed`, or not shuffled.

    Args:
        labels: Class of every example; order matters.
        folds: Number of folds.
        seed: Of the shuffling within each class; None does not shuffle.
        groups: Group of every example; a group stays in the fold that its first example gets by
            its class. Empty: every example is alone.

    Returns:
        int64 (examples,) of 0 to `folds` - 1.
    """
    groups = groups or range(len(labels))
    first: dict[Hashable, int] = {}
    for place, group in enumerate(groups):
        first.setdefault(group, place)
    order: dict[Hashable, int] = {}
    classes = np.array([order.setdefault(labels[i], len(order)) for i in first.values()], np.int64)
    fold_of = np.zeros(len(first), np.int64)
    generator = np.random.RandomState(seed)
    dealt = np.sort(classes)
    for number in range(len(order)):
        sizes = [int((dealt[fold::folds] == number).sum()) for fold in range(folds)]
        members = np.repeat(np.arange(folds), sizes)
        if seed is not None:
            generator.shuffle(members)
        fold_of[classes == number] = members
    by_group = dict(zip(first, fold_of, strict=True))
    return np.array([by_group[group] for group in groups], np.int64)
