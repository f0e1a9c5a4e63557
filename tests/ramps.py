"""Images whose first two channels say where a pixel lies, and what tests make of them."""

import jax
import jax.numpy as jnp
import numpy as np


def ramps(count, size=32):
    """Float32 (count, size, size, 3): x, y in -1..1 as the maps have them, and 1."""
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    one = np.stack([x, y, np.ones_like(x)], -1)
    return jnp.asarray(np.repeat(one[None], count, axis=0), jnp.float32)


def centers(views):
    """(n, 2): where in the image the middle of each view lies."""
    return np.asarray(views)[..., :2].mean((1, 2))


def key(seed=0):
    return jax.random.key(seed)
