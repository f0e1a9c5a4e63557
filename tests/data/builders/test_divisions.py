import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from medinit_jax.data.builders.divisions import stratified_folds


@pytest.mark.parametrize("seed", [None, 0, 7])
@pytest.mark.parametrize(("examples", "classes"), [(1187, 6), (60, 3), (23, 2)])
def test_those_of_scikit_learn(seed, examples, classes):
    labels = np.random.default_rng(examples).integers(0, classes, examples)
    reference = StratifiedKFold(5, shuffle=seed is not None, random_state=seed)
    expected = np.zeros(examples, np.int64)
    for fold, (_, test) in enumerate(reference.split(labels, labels)):
        expected[test] = fold
    names = [("class", int(label)) for label in labels]
    np.testing.assert_array_equal(stratified_folds(names, 5, seed), expected)


def test_groups_stay_together_and_classes_spread():
    labels = [0] * 20 + [1] * 10
    groups = [f"g{place // 2}" for place in range(30)]
    folds = stratified_folds(labels, 5, 0, groups)
    assert (folds[::2] == folds[1::2]).all()
    for label, per_fold in ((0, 4), (1, 2)):
        chosen = folds[np.array(labels) == label]
        np.testing.assert_array_equal(np.bincount(chosen, minlength=5), [per_fold] * 5)
