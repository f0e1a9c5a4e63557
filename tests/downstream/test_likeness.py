"""Effective rank and CKA: constants by hand, and laws."""

import numpy as np
import pytest

from medinit_jax.downstream.likeness import effective_rank, linear_cka


def features(seed=0, shape=(40, 5)):
    return np.random.default_rng(seed).normal(size=shape)


def test_rank_by_hand():
    # Centered columns with singular values 2 and 1, shares 2/3 and 1/3.
    x = np.array([[1.0, 0], [-1, 0], [1, 0], [-1, 0]]) * np.sqrt(1.0)
    assert effective_rank(x) == pytest.approx(1.0)
    y = np.array([[2.0, 0], [-2, 0], [0, 1], [0, -1]])
    shares = np.array([2, 1]) / 3
    assert effective_rank(y) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert effective_rank(np.full((6, 3), 4.0)) == 0.0


def test_rank_knows_no_shift_scale_or_rotation():
    turn = np.linalg.qr(features(1, (5, 5)))[0]
    rank = effective_rank(features())
    assert 4 < rank <= 5
    assert effective_rank(3 * features() @ turn + 7) == pytest.approx(rank)


def test_cka_is_that_of_the_gram_matrices():
    """The slow form: HSIC of centered n x n matrices."""
    x, y = features(0), features(1, (40, 3)) + features(0)[:, :3]
    center = np.eye(40) - 1 / 40
    k, m = (center @ a @ a.T @ center for a in (x, y))
    assert linear_cka(x, y) == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))
    turn = np.linalg.qr(features(2, (5, 5)))[0]
    assert linear_cka(x, 2 * x @ turn - 1) == pytest.approx(1.0)
    assert linear_cka(x, features(3)) < 0.3
    assert np.isnan(linear_cka(x, np.ones((40, 2))))
