"""Embeddings as the losses take them: of at least 32 bits, and of unit length."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medinit_jax.models.ops import at_least_float32


def wide(x: jax.Array) -> jax.Array:
    """Returns floats as float32, or as what they are if that is wider."""
    return x.astype(at_least_float32(x.dtype))


def unit(x: jax.Array) -> jax.Array:
    """Scales vectors (..., d), made `wide`, to length 1; zeros stay, with a finite gradient."""
    x = wide(x)
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))
