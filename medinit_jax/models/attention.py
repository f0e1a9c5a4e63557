"""Attention whose gradient computes the weights again, a cache-sized part at a time on CPUs."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Bytes of attention weights that are computed at a time on CPUs: what a core's cache holds.
CACHE = 2**20


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def attend(x, heads):
    """Mixes values by attention: (batch, tokens, 3 * channels) -> (batch, tokens, channels).

    Channels hold queries, keys and values, each divided into heads. The weights, the largest arrays
    of a transformer, are not kept but computed again for the gradient (FlashAttention, Dao et al.
    2022).
    """
    return _attend_forward(x, heads)[0]


def _attend_forward(x, heads):
    mixed, normalizer = _by_images(_attend_images, heads, x)
    return mixed, (x, mixed, normalizer)


def _attend_backward(heads, residuals, cotangent):
    return (_by_images(_attend_images_backward, heads, *residuals, cotangent),)


attend.defvjp(_attend_forward, _attend_backward)


def _by_images(function, heads, x, *others):
    """Runs a function of (heads, heads at a time, *arrays (batch, tokens, ...)).

    On CPUs a few images at a time, or of one image a few heads; elsewhere everything at once.
    """
    batch, tokens, _ = x.shape
    room = max(1, CACHE // (tokens**2 * np.promote_types(x.dtype, np.float32).itemsize))
    images = math.gcd(batch, 2 ** (max(1, room // heads).bit_length() - 1))
    few = heads if room >= heads else math.gcd(heads, 2 ** (room.bit_length() - 1))

    def mapped(*arrays):
        parts = tuple(a.reshape(batch // images, images, *a.shape[1:]) for a in arrays)
        found = lax.map(lambda part: function(heads, few, *part), parts)
        return jax.tree.map(lambda a: a.reshape(batch, *a.shape[2:]), found)

    whole = functools.partial(function, heads, heads)
    return lax.platform_dependent(x, *others, cpu=mapped, default=whole)


def _over_heads(function, few, *arrays):
    """Runs a function of arrays (batch, heads, tokens, ...), a few heads at a time."""
    batch, heads = arrays[0].shape[:2]
    if few == heads:
        return function(*arrays)
    parts = (a.reshape(batch, heads // few, few, *a.shape[2:]).swapaxes(0, 1) for a in arrays)
    found = lax.map(lambda part: function(*part), tuple(parts))
    return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(batch, heads, *a.shape[3:]), found)


def _attend_images(heads, few, x):
    def attend(query, key, value):
        scores = _scores(query, key)
        most = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - most)
        total = weights.sum(-1, keepdims=True)
        mixed = _einsum("bhqk,bhkd->bhqd", weights.astype(x.dtype), value) / total
        return mixed.astype(x.dtype), most + jnp.log(total)

    mixed, normalizer = _over_heads(attend, few, *_split_heads(x, 3, heads))
    return _join_heads(mixed[None]), normalizer.swapaxes(1, 2)


def _attend_images_backward(heads, few, x, mixed, normalizer, cotangent):
    def pull(query, key, value, mixed, normalizer, cotangent):
        weights = jnp.exp(_scores(query, key) - normalizer)
        dvalue = _einsum("bhqk,bhqd->bhkd", weights.astype(x.dtype), cotangent)
        dweights = _einsum("bhqd,bhkd->bhqk", cotangent, value)
        along = _einsum("bhqd,bhqd->bhq", mixed, cotangent)[..., None]
        dscores = weights * (dweights - along) / math.sqrt(query.shape[-1])
        dscores = dscores.astype(x.dtype)
        dquery = _einsum("bhqk,bhkd->bhqd", dscores, key)
        dkey = _einsum("bhqk,bhqd->bhkd", dscores, query)
        return dquery, dkey, dvalue

    (mixed,), (cotangent,) = (_split_heads(a, 1, heads) for a in (mixed, cotangent))
    parts = *_split_heads(x, 3, heads), mixed, normalizer.swapaxes(1, 2), cotangent
    return _join_heads(jnp.stack(_over_heads(pull, few, *parts))).astype(x.dtype)


def _split_heads(x, parts, heads):
    """(batch, tokens, parts * channels) -> (parts, batch, heads, tokens, size)."""
    return x.reshape(*x.shape[:2], parts, heads, -1).transpose(2, 0, 3, 1, 4)


def _join_heads(x):
    """The inverse of `_split_heads`."""
    _, batch, _, tokens, _ = x.shape
    return x.transpose(1, 3, 0, 2, 4).reshape(batch, tokens, -1)


def _scores(query, key):
    return _einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(query.shape[-1])


def _einsum(subscripts, a, b):
    """Products of `a` and `b`, added up in at least float32."""
    wide = np.promote_types(a.dtype, np.float32)
    return jnp.einsum(subscripts, a, b, preferred_element_type=wide)
