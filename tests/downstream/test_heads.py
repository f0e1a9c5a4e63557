"""Losses and probabilities of several heads against hand-computed values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.downstream import heads
from medinit_jax.downstream.heads import Head

TWO = (Head("dr", ("a", "b", "c")), Head("dme", ("no", "yes")))
LOGITS = np.array([[0.0, 1.0, 2.0, 0.5, -0.5], [1.0, 0.0, -1.0, 0.0, 0.0]])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_heads_lie_side_by_side():
    assert heads.width(TWO) == 5
    parts = heads.split(TWO, LOGITS)
    np.testing.assert_array_equal(parts["dme"], LOGITS[:, 3:])


def test_the_loss_is_the_sum_of_the_heads_means():
    targets = {"dr": jnp.array([2, 0]), "dme": jnp.array([1, 0])}
    dr, dme = log_softmax(LOGITS[:, :3]), log_softmax(LOGITS[:, 3:])
    expected = -(dr[0, 2] + dr[1, 0]) / 2 - (dme[0, 1] + dme[1, 0]) / 2
    found = jax.jit(lambda x: heads.loss(TWO, x, targets))(jnp.asarray(LOGITS, jnp.float32))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_what_is_unknown_does_not_count():
    targets = {"dr": jnp.array([2, -1]), "dme": jnp.array([-1, -1])}
    found = heads.loss(TWO, jnp.asarray(LOGITS, jnp.float32), targets)
    assert float(found) == pytest.approx(-log_softmax(LOGITS[0, :3])[2], rel=1e-6)


def test_weights_are_those_of_a_weighted_mean():
    targets = {"dr": jnp.array([2, 0]), "dme": jnp.array([-1, -1])}
    weights = {"dr": jnp.array([1.0, 1.0, 3.0])}
    dr = log_softmax(LOGITS[:, :3])
    found = heads.loss(TWO, jnp.asarray(LOGITS, jnp.float32), targets, weights)
    assert float(found) == pytest.approx(-(3 * dr[0, 2] + dr[1, 0]) / 4, rel=1e-6)


def test_pixels_are_as_images():
    logits = jnp.zeros((2, 4, 4, 2))
    targets = {"vessel": jnp.ones((2, 4, 4), jnp.int32)}
    found = heads.loss((Head("vessel", ("no", "yes")),), logits, targets)
    assert float(found) == pytest.approx(np.log(2), rel=1e-6)


def test_a_sigmoid_head():
    many = (Head("signs", ("x", "y"), "sigmoid"),)
    logits = jnp.array([[0.0, 2.0]])
    found = heads.loss(many, logits, {"signs": jnp.array([[1, 0]])})
    expected = (np.log(2) + np.log1p(np.exp(2.0))) / 2
    assert float(found) == pytest.approx(expected, rel=1e-6)
    weighted = heads.loss(
        many, logits, {"signs": jnp.array([[1, 0]])}, {"signs": jnp.array([3.0, 3.0])}
    )
    assert float(weighted) == pytest.approx((3 * np.log(2) + np.log1p(np.exp(2.0))) / 4, rel=1e-6)


def test_the_gradient_of_unknown_targets_is_zero():
    targets = {"dr": jnp.array([-1, -1]), "dme": jnp.array([-1, -1])}
    gradient = jax.grad(lambda x: heads.loss(TWO, x, targets))(jnp.asarray(LOGITS, jnp.float32))
    np.testing.assert_array_equal(gradient, 0)


def test_probabilities():
    found = heads.probabilities((*TWO, Head("signs", ("x",), "sigmoid")), np.zeros((3, 6)))
    np.testing.assert_allclose(found["dr"], 1 / 3)
    np.testing.assert_allclose(found["dme"], 0.5)
    np.testing.assert_allclose(found["signs"], 0.5)
    assert heads.probabilities(TWO, np.full((1, 5), 1e5))["dr"].sum() == pytest.approx(1)
