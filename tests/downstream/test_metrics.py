"""Figures of merit against hand-worked constants, scikit-learn and slow definitions."""

import math

import numpy as np
import pytest
from oracles import swcl
from sklearn import metrics as oracle

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.metrics import (
    accuracy,
    auc_interval,
    average_precision,
    binned_roc_auc,
    calibration_error,
    mean_sd,
    paired_difference,
    per_class,
    quadratic_kappa,
    roc_auc,
    weighted_roc_auc,
)


@pytest.mark.parametrize(
    ("labels", "scores", "area"),
    [
        ([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.75),  # 3 of 4 pairs in order
        ([0, 1], [0.5, 0.5], 0.5),  # one pair, tied
        ([0, 0, 1, 1], [1, 2, 2, 3], 0.875),  # 3 pairs won, 1 tied: 3.5 of 4
        ([1, 1, 0], [0.1, 0.2, 0.9], 0.0),
        ([True, False], [2.0, 1.0], 1.0),
    ],
)
def test_roc_auc_by_hand(labels, scores, area):
    assert roc_auc(labels, scores) == area


def test_roc_auc_equals_scikit_learn_with_many_ties():
    rng = np.random.default_rng(0)
    for size, levels in ((20, 3), (500, 7), (3000, 10**9)):
        labels = np.r_[0, 1, rng.integers(0, 2, size - 2)]
        scores = rng.integers(0, levels, size) / 7 - labels * 0.1
        assert roc_auc(labels, scores) == pytest.approx(
            oracle.roc_auc_score(labels, scores), abs=1e-12
        )


def test_roc_auc_counts_pairs():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 60), rng.integers(0, 9, 60)
    pairs = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[labels == 1]
        for n in scores[labels == 0]
    ]
    assert roc_auc(labels, scores) == pytest.approx(np.mean(pairs), abs=1e-12)


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([1, 1], [0.1, 0.2], "both classes"),
        ([], [], "both classes"),
        ([0, 1], [0.1, math.nan], "finite"),
        ([0, 2], [0.1, 0.2], "0 and 1"),
        ([0, 1], [0.1], "one score per label"),
    ],
)
def test_roc_auc_refuses(labels, scores, words):
    with pytest.raises(UsageError, match=words):
        roc_auc(labels, scores)


def test_interval_equals_a_loop_over_resamples():
    """The same multinomial draws, unrolled into repeated samples, scored one by one."""
    rng = np.random.default_rng(2)
    labels = np.r_[np.zeros(12, int), np.ones(8, int)]
    scores = rng.integers(0, 6, 20) + labels
    order = np.argsort(scores, kind="stable")
    draws = np.random.default_rng(5)
    ranked = labels[order]
    counts = np.empty((300, 20), int)
    for value in (0, 1):
        index = np.flatnonzero(ranked == value)
        counts[:, index] = draws.multinomial(len(index), np.full(len(index), 1 / len(index)), 300)
    areas = [
        oracle.roc_auc_score(np.repeat(ranked, c), np.repeat(scores[order], c)) for c in counts
    ]
    low, high = auc_interval(labels, scores, resamples=300, seed=5)
    assert (low, high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])), abs=1e-12)


def test_interval_is_near_hanley_and_mcneil():
    """Binormal scores: the bootstrap's width is that of the textbook standard error."""
    rng = np.random.default_rng(3)
    labels = np.r_[np.zeros(300, int), np.ones(200, int)]
    scores = rng.normal(size=500) + labels
    area = roc_auc(labels, scores)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    error = math.sqrt(
        (area * (1 - area) + 199 * (q1 - area**2) + 299 * (q2 - area**2)) / (200 * 300)
    )
    low, high = auc_interval(labels, scores, resamples=2000)
    assert low < area < high
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.12)
    assert auc_interval(labels, scores) == auc_interval(labels, scores)


def test_groups_widen_the_interval_of_repeated_images():
    """Five copies of each image carry no new information; only groups can know that."""
    rng = np.random.default_rng(4)
    labels = np.tile([0, 1], 40)
    scores = rng.normal(size=80) + 0.8 * labels
    patients = np.arange(80)
    single = np.diff(auc_interval(labels, scores, patients))[0]
    copies = np.repeat(labels, 5), np.repeat(scores, 5)
    assert np.diff(auc_interval(*copies))[0] < 0.6 * single
    grouped = np.diff(auc_interval(*copies, np.repeat(patients, 5)))[0]
    assert grouped == pytest.approx(single, rel=0.1)


def test_interval_refuses_too_few_groups():
    with pytest.raises(UsageError, match="one class"):
        auc_interval([0, 1], [0.2, 0.3], ["a", "b"], resamples=1000, seed=1)
    with pytest.raises(UsageError, match="3 names for 2"):
        auc_interval([0, 1], [0.2, 0.3], ["a", "b", "c"])


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


def test_weighted_area_is_that_of_repeated_samples():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 40), rng.integers(0, 9, 40) / 9
    times = rng.integers(0, 4, 40)
    expected = oracle.roc_auc_score(np.repeat(labels, times), np.repeat(scores, times))
    assert weighted_roc_auc(labels, scores, times) == pytest.approx(expected)
    assert math.isnan(weighted_roc_auc(labels, scores, labels))


def test_average_precision_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 300), rng.integers(0, 20, 300) / 20
    expected = oracle.average_precision_score(labels, scores)
    assert average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)


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
