"""The ridge probe against scikit-learn, its own dual form and laws."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.probe import PENALTIES, ridge_path, ridge_probe
from medinit_jax.downstream.ranking import roc_auc


def _sets(features, seed=0, sizes=(60, 40, 50)):
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=features) / features**0.5
    sets = []
    for size in sizes:
        x = rng.normal(size=(size, features)) * rng.uniform(0.1, 10, features) + 3
        logits = ((x - 3) / x.std(axis=0)) @ direction + 0.3 * rng.normal(size=size)
        sets += [x, (logits > 0).astype(int)]
    return sets


@pytest.mark.parametrize("shape", [(40, 7), (12, 30), (20, 20)])
def test_path_equals_scikit_learn(shape):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=shape), rng.normal(size=(shape[0], 2))
    for weights, penalty in zip(
        ridge_path(x, y, [1e-3, 1.0, 50.0]), [1e-3, 1.0, 50.0], strict=True
    ):
        model = Ridge(alpha=penalty * shape[0], fit_intercept=False, solver="svd").fit(x, y)
        np.testing.assert_allclose(weights, model.coef_.T, rtol=1e-8, atol=1e-10)


def test_dual_equals_primal():
    """Appending rows of zeros changes n but not the problem once the penalty is rescaled."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(10, 25)), rng.normal(size=10)
    padded = np.vstack([x, np.zeros((30, 25))])
    primal = ridge_path(padded, np.r_[y, np.zeros(30)], [0.1 / 4])
    np.testing.assert_allclose(ridge_path(x, y, [0.1]), primal, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("features", "form"), [(8, "primal"), (90, "dual")])
def test_probe_equals_scikit_learn_pipeline(features, form):
    train_x, train_y, val_x, val_y, test_x, test_y = _sets(features)
    result = ridge_probe(train_x, train_y, val_x, val_y, test_x, test_y)
    mean, scale = train_x.mean(axis=0), train_x.std(axis=0)
    areas = []
    for penalty in PENALTIES:
        model = Ridge(alpha=penalty * len(train_x), solver="svd")
        model.fit((train_x - mean) / scale, train_y)
        areas.append(
            [
                roc_auc(y, model.predict((x - mean) / scale))
                for x, y in ((val_x, val_y), (test_x, test_y))
            ]
        )
    best = max(range(len(PENALTIES)), key=lambda i: (areas[i][0], PENALTIES[i]))
    assert result["form"] == form
    assert result["penalty"] == PENALTIES[best]
    assert result["val_auc"] == pytest.approx(areas[best][0], abs=1e-12)
    assert result["auc"] == pytest.approx(areas[best][1], abs=1e-12)
    assert result["auc"] > 0.6


def test_probe_is_blind_to_scale_shift_and_constant_columns():
    sets = _sets(8)
    result = ridge_probe(*sets)
    moved = [
        np.c_[a * 1e3 - 7, np.full(len(a), 0.1)] if i % 2 == 0 else a for i, a in enumerate(sets)
    ]
    other = ridge_probe(*moved)
    np.testing.assert_allclose(other["scores"], result["scores"], atol=1e-8)
    assert other["penalty"] == result["penalty"]


def test_probe_never_looks_at_test_labels_and_repeats():
    sets = _sets(90)
    first, second = ridge_probe(*sets), ridge_probe(*sets)
    np.testing.assert_array_equal(first["scores"], second["scores"])
    flipped = ridge_probe(*sets[:5], 1 - sets[5])
    np.testing.assert_array_equal(first["scores"], flipped["scores"])
    assert flipped["auc"] == pytest.approx(1 - first["auc"])


def test_probe_refuses_features_that_are_not_finite():
    sets = _sets(8)
    sets[2][3, 1] = np.inf
    with pytest.raises(UsageError, match="val features of 1 of 40"):
        ridge_probe(*sets)
    with pytest.raises(UsageError, match="train features"):
        ridge_probe(np.zeros((0, 4)), [], *_sets(4)[2:])
