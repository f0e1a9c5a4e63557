"""Embeddings as the losses take them: of at least 32 bits, and of unit length."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def wide(x: jax.Array) -> jax.Array:
    """Returns floats as float32, or as what they are if that is wider."""
    return x.astype(jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def unit(x: jax.Array) -> jax.Array:
    """Scales vectors (..., d) to length 1; zero vectors stay zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-24))
