import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.folds import stratified_group_folds


def _patients(seed, count=120):
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(count), rng.integers(1, 5, count))
    labels = rng.choice(4, len(groups), p=[0.6, 0.2, 0.15, 0.05])
    return labels, np.array([f"patient {g}" for g in groups])


def _imbalance(labels, folds):
    counts = np.array([np.bincount(labels[folds == f], minlength=4) for f in range(5)])
    return float((counts / counts.sum(0)).std(0).mean())


@pytest.mark.parametrize("seed", range(4))
def test_classes_are_as_even_as_with_scikit_learn(seed):
    labels, groups = _patients(seed)
    folds = stratified_group_folds(labels, groups, 5, seed)
    theirs = np.zeros(len(labels), int)
    splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    for number, (_, test) in enumerate(splitter.split(labels, labels, groups)):
        theirs[test] = number
    assert _imbalance(labels, folds) < 1.2 * _imbalance(labels, theirs) + 0.003
    _, member = np.unique(groups, return_inverse=True)
    random = np.random.default_rng(seed).integers(5, size=200)[member]
    assert _imbalance(labels, folds) < 0.5 * _imbalance(labels, random)


def test_a_group_is_in_one_fold_and_all_folds_are_used():
    labels, groups = _patients(0)
    folds = stratified_group_folds(labels, groups, 5, 0)
    for name in np.unique(groups):
        assert len(np.unique(folds[groups == name])) == 1
    assert set(folds) == set(range(5))


def test_single_images_of_one_class_are_dealt_evenly():
    folds = stratified_group_folds(np.zeros(12), np.arange(12), 4)
    np.testing.assert_array_equal(np.bincount(folds), [3, 3, 3, 3])


def test_the_seed_and_nothing_else_decides():
    labels, groups = _patients(0)
    folds = stratified_group_folds(labels, groups, 5, 1)
    np.testing.assert_array_equal(folds, stratified_group_folds(labels, groups, 5, 1))
    assert (folds != stratified_group_folds(labels, groups, 5, 2)).any()
    order = np.random.default_rng(0).permutation(len(labels))
    moved = stratified_group_folds(labels[order], groups[order], 5, 1)
    np.testing.assert_array_equal(moved, folds[order])


@pytest.mark.parametrize("k", [1, 4])
def test_too_few_groups_are_refused(k):
    with pytest.raises(UsageError, match="3 patients"):
        stratified_group_folds([0, 1, 1, 0], ["a", "b", "c", "a"], k)


def test_every_image_needs_a_group():
    with pytest.raises(UsageError, match="needs a group"):
        stratified_group_folds([0, 1], ["a"], 2)
