"""Bootstrap intervals against a loop over resampled images, and the paired test."""

import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.intervals import bootstrap, paired_test

VALUES = np.random.default_rng(0).normal(size=60)


def mean(weights):
    return float(np.average(VALUES, weights=weights))


def test_equals_a_loop_over_drawn_images():
    rng = np.random.default_rng(3)
    drawn = [VALUES[rng.integers(0, 60, 60)].mean() for _ in range(500)]
    found = bootstrap(mean, 60, resamples=500, seed=3)
    np.testing.assert_allclose(found[:2], np.quantile(drawn, [0.025, 0.975]), rtol=1e-12)
    assert found.valid == 500


def test_whole_patients_are_drawn():
    groups = np.repeat(np.arange(6), 10).astype(str)
    seen = []

    def figure(weights):
        seen.append(weights)
        return mean(weights)

    wide = bootstrap(figure, 60, groups, resamples=200, seed=0)
    for weights in seen:
        assert all(len(np.unique(part)) == 1 for part in weights.reshape(6, 10))
        assert weights.reshape(6, 10)[:, 0].sum() == 6
    assert wide[0] < mean(np.ones(60)) < wide[1]


def test_resamples_without_a_figure_are_left_out():
    calls = iter(range(1000))
    found = bootstrap(
        lambda w: float("nan") if next(calls) % 4 == 0 else mean(w), 60, resamples=1000
    )
    assert np.isfinite(found).all() and found.valid == 750
    none = bootstrap(lambda w: float("nan"), 60, resamples=20)
    assert np.isnan(none[:2]).all() and none.valid == 0


def test_a_clear_difference_has_a_small_p_and_none_has_a_large_one():
    shifted = VALUES + 1 + 0.1 * np.random.default_rng(1).normal(size=60)
    found = paired_test(lambda w: float(np.average(shifted, weights=w)), mean, 60, resamples=1000)
    assert found.difference == pytest.approx(1, abs=0.05)
    assert 0.9 < found.low < found.high < 1.1
    assert found.p == pytest.approx(1 / 1000)
    same = paired_test(mean, mean, 60, resamples=100)
    assert same.p == 1 and same.difference == 0


def test_pairing_narrows_the_interval():
    noisy = VALUES + 0.01 * np.random.default_rng(1).normal(size=60)
    paired = paired_test(lambda w: float(np.average(noisy, weights=w)), mean, 60, resamples=300)
    alone = bootstrap(mean, 60, resamples=300)
    assert paired.high - paired.low < 0.1 * (alone[1] - alone[0])


def test_groups_have_to_be_as_many_as_images():
    with pytest.raises(UsageError, match="3 groups were given for 60 images"):
        bootstrap(mean, 60, ["a", "b", "c"])
