"""Triplet losses: against the reference code, a plain triple loop and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import swcl

from medinit_jax.swcl.triplet import TRIPLETS, batch_hard_hinge, batch_hard_softplus, semi_hard

CASES = ("tight", "loose", "random", "margin1")
HARD = {
    "hinge05": (batch_hard_hinge, 0.5),
    "soft0": (batch_hard_softplus, 0.0),
    "soft05": (batch_hard_softplus, 0.5),
}


def batch(images=5, views=3, seed=0, dtype=np.float32):
    z = np.random.default_rng(seed).normal(size=(images * views, 4))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return jnp.asarray(z, dtype), jnp.tile(jnp.arange(images, dtype=jnp.int32), views)


def pull(loss, z, y, margin=0.5):
    return jax.jit(jax.value_and_grad(loss))(z, y, margin)


def plain(z, y, margin):
    """All pairs, one after another; the distances can be differentiated."""
    losses = []
    for a in range(len(z)):
        distances = [((z[a] - other) ** 2).sum() for other in z]
        negatives = [d for d, identity in zip(distances, y, strict=True) if identity != y[a]]
        for p in range(len(z)):
            if p == a or y[p] != y[a] or not negatives:
                continue
            farther = [d for d in negatives if d > distances[p]]
            chosen = min(farther) if farther else max(negatives)
            losses.append(jnp.maximum(margin + distances[p] - chosen, 0))
    return jnp.stack(losses).mean()


@pytest.mark.parametrize("case", CASES)
def test_semi_hard_is_the_references(case):
    held = {name: swcl()[f"tri_{case}_{name}"] for name in ("emb", "y", "margin", "loss", "grad")}
    value, gradient = pull(
        semi_hard, held["emb"], held["y"].astype(np.int32), held["margin"].item()
    )
    np.testing.assert_allclose(value, held["loss"], 1e-5)
    np.testing.assert_allclose(gradient, held["grad"], 1e-5, 1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", HARD)
def test_batch_hard_is_the_formula_of_s4l(case, variant):
    held = swcl()
    loss, margin = HARD[variant]
    z, y = held[f"tri_{case}_emb"], held[f"tri_{case}_y"].astype(np.int32)
    value, gradient = pull(loss, z, y, margin)
    np.testing.assert_allclose(value, held[f"tri_{case}_bh_{variant}_loss"], 1e-5)
    np.testing.assert_allclose(gradient, held[f"tri_{case}_bh_{variant}_grad"], 1e-5, 1e-6)


@pytest.mark.parametrize("margin", (0.1, 0.5, 4.0))
def test_semi_hard_is_a_triple_loop(margin):
    with jax.enable_x64(True):
        z, y = batch(dtype=np.float64)
        # One identity alone, one of two views: the number of positives differs.
        y = y.at[0].set(9)
        value, gradient = pull(semi_hard, z, y, margin)
        wanted = jax.value_and_grad(lambda z: plain(z, np.asarray(y), margin))(z)
        assert value.dtype == gradient.dtype == np.float64
        np.testing.assert_allclose(value, wanted[0], 1e-12)
        np.testing.assert_allclose(gradient, wanted[1], 1e-10, 1e-12)


def test_a_negative_as_far_as_the_positive_is_not_semi_hard():
    """On a line: anchor 0, positive at 1, negatives at -1 (as far) and at 2 or 3."""
    z = jnp.array([[0.0], [1], [-1], [2]])
    y = jnp.array([0, 0, 1, 2], jnp.int32)
    # From 0: positive 1, negative 4, not 1. From 1: positive 1, negatives 4 and 1: 4.
    assert float(semi_hard(z, y, 3.5)) == pytest.approx((3.5 + 1 - 4 + 3.5 + 1 - 4) / 2)


def test_the_farthest_negative_stands_in_where_none_is_farther():
    z = jnp.array([[0.0], [5], [1], [2]])
    y = jnp.array([0, 0, 1, 2], jnp.int32)
    # From 0: positive 25, farthest negative 4. From 5: positive 25, farthest negative 16.
    assert float(semi_hard(z, y, 0.5)) == pytest.approx((0.5 + 25 - 4 + 0.5 + 25 - 16) / 2)


def test_batch_hard_by_hand():
    z = jnp.array([[0.0], [1], [3], [7]])
    y = jnp.array([0, 0, 0, 1], jnp.int32)
    # Farthest positives 3, 2, 3; nearest negatives 7, 6, 4; the last one has no positive.
    assert float(batch_hard_hinge(z, y, 2.0)) == pytest.approx((0 + 0 + 1) / 3)
    gaps = np.array([-4.0, -4, -1])
    wanted = np.log1p(np.exp(0.5 + gaps)).mean()
    assert float(batch_hard_softplus(z, y, 0.5)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("name", TRIPLETS)
@pytest.mark.parametrize("identities", ("different", "equal"))
def test_without_triplets_the_loss_is_zero(name, identities):
    z, _ = batch()
    y = jnp.arange(15) if identities == "different" else jnp.zeros(15, jnp.int32)
    value, gradient = pull(TRIPLETS[name], z, y)
    assert float(value) == 0 and not np.any(gradient)


@pytest.mark.parametrize("name", TRIPLETS)
def test_order_does_not_matter(name):
    z, y = batch(8, 4)
    order = np.random.default_rng(1).permutation(len(z))
    value, gradient = pull(TRIPLETS[name], z, y)
    moved = pull(TRIPLETS[name], z[order], y[order])
    assert float(value) > 0
    np.testing.assert_allclose(moved[0], value, 1e-6)
    np.testing.assert_allclose(moved[1], gradient[order], 1e-4, 1e-6)


@pytest.mark.parametrize("name", TRIPLETS)
def test_equal_views_keep_the_gradient_finite(name):
    z, y = batch(4, 1)
    value, gradient = pull(TRIPLETS[name], jnp.tile(z, (3, 1)), jnp.tile(y, 3))
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", TRIPLETS)
def test_narrow_floats_are_compared_in_32_bits(name):
    z, y = batch()
    narrow = z.astype(jnp.bfloat16)
    value, gradient = pull(TRIPLETS[name], narrow, y)
    wanted = pull(TRIPLETS[name], narrow.astype(jnp.float32), y)
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    assert float(value) == float(wanted[0])
    np.testing.assert_array_equal(gradient, wanted[1].astype(jnp.bfloat16))


@pytest.mark.parametrize("name", TRIPLETS)
def test_memory_is_quadratic(name):
    z, y = batch(64, 4)
    compiled = jax.jit(jax.value_and_grad(TRIPLETS[name])).lower(z, y).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 4 * 256**2
