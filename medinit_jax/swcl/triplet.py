"""Triplet losses on embeddings whose positives share an identity; memory is quadratic in the batch.

Which triplet counts is decided without a gradient; only the chosen distances have one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medinit_jax.losses.vectors import wide


def semi_hard(z: jax.Array, identities: jax.Array, margin: float = 0.5) -> jax.Array:
    """Returns the semi-hard triplet loss on squared distances.

    For every ordered pair of an anchor and a positive, the negative is the nearest one farther
    from the anchor than the positive is, or the farthest of all if none is. Pairs whose anchor has
    no negative do not count; without any pair the loss is 0.

    Args:
        z: Float (n, d), of unit length as a rule.
        identities: int (n,), equal for positives.
        margin: Of squared distances.

    Returns:
        Float32 or float64 scalar: mean over the pairs of max(0, margin + d(a, p) - d(a, n)).

    Source: FaceNet (arXiv 1503.03832), section 3.2, as SWCL's code has it: squared distances, and
        all pairs of an identity.
    """
    z = wide(z)
    squares = (z * z).sum(-1)
    products = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST)
    itself = jnp.eye(z.shape[0], dtype=bool)
    distances = jnp.where(
        itself, 0, jnp.maximum(squares[:, None] + squares[None] - 2 * products, 0)
    )
    negative = identities[:, None] != identities[None]
    count = negative.sum(1)
    pairs = ~negative & ~itself & (count > 0)[:, None]
    fixed = jax.lax.stop_gradient(distances)
    far = jnp.where(negative, fixed, jnp.inf)
    order = jnp.argsort(far, axis=1)
    farther = functools.partial(jnp.searchsorted, side="right")
    place = jax.vmap(farther)(jnp.take_along_axis(far, order, 1), fixed)
    # Where no negative is farther, the search ends past the last one, which is the farthest.
    place = jnp.clip(place, 0, jnp.maximum(count - 1, 0).astype(place.dtype)[:, None])
    chosen = jnp.take_along_axis(distances, jnp.take_along_axis(order, place, 1), 1)
    losses = jnp.where(pairs, jnp.maximum(margin + distances - chosen, 0), 0)
    return losses.sum() / jnp.maximum(pairs.sum(), 1).astype(z.dtype)


def batch_hard_hinge(z: jax.Array, identities: jax.Array, margin: float = 0.5) -> jax.Array:
    """Returns the batch-hard triplet loss with a hinge; see `batch_hard_softplus`."""
    return _batch_hard(z, identities, lambda gap: jnp.maximum(margin + gap, 0))


def batch_hard_softplus(z: jax.Array, identities: jax.Array, margin: float = 0.0) -> jax.Array:
    """Returns the batch-hard triplet loss with a soft margin, on distances that are not squared.

    Every anchor meets its farthest positive and its nearest negative. Anchors that lack either do
    not count; without any anchor the loss is 0.

    Args:
        z: Float (n, d), of unit length as a rule.
        identities: int (n,), equal for positives.
        margin: Of distances; S4L's own code has 0, the SWCL paper 0.5.

    Returns:
        Float32 or float64 scalar: mean over the anchors of softplus(margin + d(a, p) - d(a, n)).

    Source: Hermans et al. (arXiv 1703.07737), Eq. 5, with the soft margin of section 2.
    """
    return _batch_hard(z, identities, lambda gap: jax.nn.softplus(margin + gap))


# Loss by the name that a config gives it; the first is the one of SWCL's code.
TRIPLETS: dict[str, Callable[..., jax.Array]] = {
    "semi_hard": semi_hard,
    "batch_hard_hinge": batch_hard_hinge,
    "batch_hard_softplus": batch_hard_softplus,
}


def _batch_hard(z, identities, score: Callable):
    z = wide(z)
    fixed = jax.lax.stop_gradient(z)
    squares = (fixed * fixed).sum(-1)
    products = jnp.matmul(fixed, fixed.T, precision=jax.lax.Precision.HIGHEST)
    # An anchor's own square is the same for all and decides nothing.
    nearness = 2 * products - squares[None]
    same = identities[:, None] == identities[None]
    positive = same & ~jnp.eye(z.shape[0], dtype=bool)
    farthest = jnp.where(positive, nearness, jnp.inf).argmin(1)
    nearest = jnp.where(same, -jnp.inf, nearness).argmax(1)
    used = positive.any(1) & ~same.all(1)
    losses = jnp.where(used, score(_distance(z, z[farthest]) - _distance(z, z[nearest])), 0)
    return losses.sum() / jnp.maximum(used.sum(), 1).astype(z.dtype)


def _distance(a, b):
    """The floor keeps the slope of the root finite where the two are equal."""
    return jnp.sqrt(jnp.maximum(((a - b) ** 2).sum(-1), 1e-12))
