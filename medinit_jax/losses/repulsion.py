"""What pushes an anchor from all other rows: the sum over pairs that every contrastive loss has.

It goes over the anchors a chunk at a time, so that the matrix of all logits is never held, and
leaves its gradient behind on the way, so that the backward pass costs nothing.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def repulsion(z: jax.Array, own: jax.Array | None, weight: jax.Array, chunk: int) -> jax.Array:
    """Returns sum_i weight_i log sum_{k != own_i} exp(z_{own_i} . z_k).

    Args:
        z: Float (M, D).
        own: int (A,), the anchors' rows in `z`; None: all of them in order.
        weight: Float (A,), 0 for anchors to leave out.
        chunk: Anchors at a time.

    Returns:
        Float scalar; its gradient in `z` is computed with it, and none exists in `weight`.
    """
    return _scored(z, own, weight, chunk, gradient=False)[0]


def _forward(z, own, weight, chunk):
    return _scored(z, own, weight, chunk, gradient=True)


def _backward(chunk, gradient, cotangent):
    return cotangent * gradient, None, None


repulsion.defvjp(_forward, _backward)


def _scored(z, own, weight, chunk: int, gradient: bool):
    # Two products of twice the chunk instead of three of a chunk: faster where it fits in caches.
    if own is None and len(z) <= 2 * chunk:
        return _at_once(z, weight, gradient)
    at = jnp.arange(len(z), dtype=jnp.int32) if own is None else own
    return _over_chunks(z, at, weight, chunk, gradient)


def _at_once(z, weight, gradient: bool):
    """As `_over_chunks` for all rows; logits are symmetric, which saves a product."""
    logits, top = _logits(z, z, jnp.arange(len(z), dtype=jnp.int32))
    log_norm = top + jnp.log(jnp.exp(logits - top[:, None]).sum(1))
    total = _weighted(weight, log_norm).sum()
    if not gradient:
        return total, None
    # Rows of weight 0 without any logit have the norm 0.
    shift = jnp.where(weight > 0, log_norm, jnp.inf)
    pairs = weight[:, None] * jnp.exp(logits - shift[:, None]) + weight * jnp.exp(logits - shift)
    return total, jnp.matmul(pairs, z, precision=_HIGHEST)


def _over_chunks(z, own, weight, chunk: int, gradient: bool):
    """Returns the weighted sum and its gradient in `z`, from a piece of the anchors at a time."""
    pieces = -(-len(own) // chunk)
    # Pieces of equal size, so that little of the last one is padding.
    size = -(-len(own) // pieces)
    split = [jnp.pad(x, (0, pieces * size - len(own))).reshape(pieces, size) for x in (own, weight)]

    def piece(carry, given):
        total, pushed = carry
        at, weight = given
        logits, top = _logits(z[at], z, at)
        exps = jnp.exp(logits - top[:, None])
        norm = exps.sum(1)
        total += _weighted(weight, top + jnp.log(norm)).sum()
        if not gradient:
            return (total, None), None
        share = _weighted(weight, 1 / norm)[:, None]
        # Features first: XLA's product on CPUs is half as fast the other way around.
        pushed += jnp.matmul((z[at] * share).T, exps, precision=_HIGHEST)
        return (total, pushed), jnp.matmul(exps, z, precision=_HIGHEST) * share

    start = (jnp.zeros_like(z[0, 0]), jnp.zeros_like(z.T) if gradient else None)
    (total, pushed), pulled = jax.lax.scan(piece, start, tuple(split))
    if pushed is None or pulled is None:
        return total, None
    pulled = pulled.reshape(-1, z.shape[1])[: len(own)]
    return total, pushed.T.at[own].add(pulled)


def _logits(anchors, z, at):
    """Returns the logits (A, M), -inf with an anchor itself, and the largest of each row."""
    logits = jnp.matmul(anchors, z.T, precision=_HIGHEST)
    logits = jnp.where(jnp.arange(len(z), dtype=at.dtype) == at[:, None], -jnp.inf, logits)
    # An anchor alone in the batch has no logits at all; its weight is 0.
    return logits, jnp.maximum(logits.max(1), jnp.finfo(z.dtype).min)


def _weighted(weight, values):
    return jnp.where(weight > 0, weight * values, 0)
