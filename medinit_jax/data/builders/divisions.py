"""Parts and folds of a dataset, fixed when it is prepared."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from medinit_jax.data.builders.config import Item
from medinit_jax.data.sources import cut_shuffled


def divide(names: Sequence[str], first: int, seed: int) -> tuple[list[str], list[str]]:
    """Divides names at random into `first` of them and the rest, see `cut_shuffled`."""
    kept, rest = cut_shuffled(names, [first], seed)
    return kept, rest


def carve(items: Sequence[Item], split: str, seed: int) -> tuple[list[Item], list[Item]]:
    """Divides items into four fifths, which stay, and a fifth for another split.

    Args:
        items: What is divided; no patient comes into both parts.
        split: Name of the split of the fifth.
        seed: See `divide`, which divides the patients, or the items without one.

    Returns:
        The items that stay, and those of `split`, with keys of it.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(item.values["patient_id"] or item.key, []).append(item)
    kept, carved = divide(list(groups), len(groups) * 4 // 5, seed)
    return [item for name in kept for item in groups[name]], [
        item._replace(key=f"{split}/{item.key.partition('/')[2]}")
        for name in carved
        for item in groups[name]
    ]


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
