"""Areas under curves against hand-worked constants, scikit-learn and slow definitions."""

import math

import numpy as np
import pytest
from sklearn import metrics as oracle

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.ranking import (
    auc_interval,
    average_precision,
    ranked_roc_auc,
    roc_auc,
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


def test_weighted_area_is_that_of_repeated_samples():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 40), rng.integers(0, 9, 40) / 9
    times = rng.integers(0, 4, 40)
    expected = oracle.roc_auc_score(np.repeat(labels, times), np.repeat(scores, times))
    assert ranked_roc_auc(labels, scores)(times) == pytest.approx(expected)
    assert math.isnan(ranked_roc_auc(labels, scores)(labels.astype(float)))


def test_average_precision_equals_scikit_learn_with_ties():
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 300), rng.integers(0, 20, 300) / 20
    expected = oracle.average_precision_score(labels, scores)
    assert average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("levels", [4, 10**9])
def test_one_ranking_serves_all_resamples_exactly(levels):
    """Whole weights are repetitions, whose area `roc_auc` works out from the start."""
    rng = np.random.default_rng(5)
    labels, scores = rng.integers(0, 2, 120), rng.integers(0, levels, 120) / 7
    area = ranked_roc_auc(labels, scores)
    for _ in range(50):
        times = np.bincount(rng.integers(0, 120, 120), minlength=120)
        plain = roc_auc(np.repeat(labels, times), np.repeat(scores, times))
        assert area(times.astype(float)) == plain
    assert math.isnan(area((labels == 1).astype(float)))
