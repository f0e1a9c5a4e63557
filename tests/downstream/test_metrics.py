"""Figures of classes and their spread against hand-worked constants and scikit-learn."""

import math

import numpy as np
import pytest
from oracles import swcl
from sklearn import metrics as oracle

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.metrics import (
    accuracy,
    calibration_error,
    mean_sd,
    paired_difference,
    per_class,
    quadratic_kappa,
)
from medinit_jax.downstream.ranking import binned_roc_auc, roc_auc


def test_accuracy():
    assert accuracy([0, 1, 2, 3], [0, 1, 0, 3]) == 0.75
    assert accuracy([1, 0], [[0.1, 0.9], [0.2, 0.8]]) == 0.5
    with pytest.raises(UsageError):
        accuracy([], [])


def test_mean_sd_by_hand():
    mean, sd = mean_sd([[1.0, 5.0], [3.0, 5.0]])
    assert mean.tolist() == [2.0, 5.0]
    assert sd.tolist() == pytest.approx([math.sqrt(2), 0.0])
    assert np.isnan(mean_sd([0.7])[1])


def test_paired_difference_by_hand():
    """Differences .1, .2, .3: mean .2, sd .1, t(2, .975) = 4.302653, half width .248414."""
    result = paired_difference([0.8, 0.9, 0.7], [0.7, 0.7, 0.4])
    assert result.mean == pytest.approx(0.2)
    assert result.sd == pytest.approx(0.1)
    assert result.high - result.mean == pytest.approx(0.248414, abs=1e-6)
    assert result.mean - result.low == pytest.approx(0.248414, abs=1e-6)
    assert result.count == 3


def test_paired_difference_of_one_seed_has_no_interval():
    result = paired_difference([0.8], [0.7])
    assert result.mean == pytest.approx(0.1)
    assert math.isnan(result.sd) and math.isnan(result.low) and math.isnan(result.high)
    with pytest.raises(UsageError):
        paired_difference([0.8], [0.7, 0.6])


def test_figures_of_the_reference():
    held = swcl()
    labels, scores = held["met_gt"], held["met_probs"]
    assert roc_auc(labels, scores[:, 1]) == pytest.approx(held["met_auc_exact"], rel=1e-6)
    for k in (0, 1):
        found = binned_roc_auc((labels == k).astype(int), scores[:, k])
        assert found == pytest.approx(held["met_auc_binned"][k], rel=1e-5)
    rows = per_class(labels, scores.argmax(1), 2)
    np.testing.assert_allclose(rows["f1"], held["met_f1"], 1e-5)
    np.testing.assert_allclose(rows["specificity"], held["met_spec"], 1e-5)
    assert accuracy(labels, scores) == pytest.approx(float(held["met_acc"]))


def test_kappa_equals_scikit_learn_and_its_limits():
    rng = np.random.default_rng(2)
    labels, guesses = rng.integers(0, 5, 400), rng.integers(0, 5, 400)
    guesses = np.where(rng.random(400) < 0.6, labels, guesses)
    expected = oracle.cohen_kappa_score(labels, guesses, weights="quadratic")
    assert quadratic_kappa(labels, guesses, 5) == pytest.approx(expected, abs=1e-12)
    assert quadratic_kappa(labels, labels, 5) == 1
    assert quadratic_kappa([2, 2], [2, 2], 5) == 0
    times = rng.integers(0, 3, 400)
    assert quadratic_kappa(labels, guesses, 5, times) == pytest.approx(
        quadratic_kappa(np.repeat(labels, times), np.repeat(guesses, times), 5)
    )


def test_figures_per_class_equal_scikit_learn():
    rng = np.random.default_rng(3)
    labels, guesses = rng.integers(0, 3, 90), rng.integers(0, 4, 90)
    rows = per_class(labels, guesses, 4)
    expected = oracle.precision_recall_fscore_support(labels, guesses, zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        # scikit-learn calls F1 0 where recall is not defined but the class was predicted, as we do.
        np.testing.assert_allclose(rows[name], values)
    assert math.isnan(rows["recall"][3]) and rows["support"][3] == 0
    with pytest.raises(UsageError, match="Classes go from 0 to 2, but 0 to 3 occur"):
        per_class(labels, guesses, 3)


def test_calibration_error_by_hand():
    # Confidence 0.9 twice, right once: |0.5 - 0.9|; 0.6 twice, right twice: |1 - 0.6|.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    assert calibration_error([0, 1, 1, 1], probabilities) == pytest.approx(0.4)
    assert calibration_error([0, 1], [[1.0, 0.0], [0.0, 1.0]]) == 0
