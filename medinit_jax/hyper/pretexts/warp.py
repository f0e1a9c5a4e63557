"""Moves, cuts and colors images inside a compiled function, each image by its own draw.

Maps are those of `data.augment`: from output to input, the image's center as origin and half its
side as unit, (x, y).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def warp(images: jax.Array, matrices: jax.Array, size: int) -> jax.Array:
    """Applies affine maps by bilinear interpolation; what lies outside is 0.

    Args:
        images: float (B, H, W, C).
        matrices: float (B, 2, 3), from output to input.
        size: Side of the result in pixels.

    Returns:
        float (B, size, size, C). Nothing is averaged: maps that make images much smaller alias.
    """
    count, height, width, channels = images.shape
    axis = (jnp.arange(size, dtype=images.dtype) + 0.5) * (2 / size) - 1
    x, y = jnp.meshgrid(axis, axis)
    grid = jnp.stack([x.ravel(), y.ravel(), jnp.ones(size * size, images.dtype)])
    places = matrices.astype(images.dtype) @ grid
    column = (places[:, 0] + 1) * (width / 2) - 0.5
    row = (places[:, 1] + 1) * (height / 2) - 0.5
    flat = images.reshape(count, height * width, channels)
    top, left = jnp.floor(row), jnp.floor(column)
    result = jnp.zeros((count, size * size, channels), images.dtype)
    for r in (top, top + 1):
        for c in (left, left + 1):
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            weight = (1 - jnp.abs(row - r)) * (1 - jnp.abs(column - c))
            index = jnp.clip(r, 0, height - 1) * width + jnp.clip(c, 0, width - 1)
            taken = jnp.take_along_axis(flat, index.astype(jnp.int32)[..., None], axis=1)
            result += jnp.where(inside, weight, 0)[..., None] * taken
    return result.reshape(count, size, size, channels)


def boxes(x: jax.Array, y: jax.Array, half: jax.Array) -> jax.Array:
    """Returns the maps (B, 2, 3) that cut squares with centers (x, y) and half sides, (B,) each."""
    none = jnp.zeros_like(x)
    return jnp.stack([jnp.stack([half, none, x], -1), jnp.stack([none, half, y], -1)], 1)


def random_boxes(
    key: jax.Array, count: int, area: tuple[float, float], mirror: float = 0.0
) -> jax.Array:
    """Draws squares inside the image.

    Args:
        key: Random key.
        count: How many.
        area: Lowest and highest share of the image's area.
        mirror: Probability that left and right are exchanged.

    Returns:
        Maps (count, 2, 3).
    """
    u = jax.random.uniform(key, (4, count))
    half = jnp.sqrt(area[0] + (area[1] - area[0]) * u[0])
    x, y = ((1 - half) * (2 * v - 1) for v in u[1:3])
    maps = boxes(x, y, half)
    return maps.at[:, 0, 0].multiply(jnp.where(u[3] < mirror, -1.0, 1.0))


def random_affine(
    key: jax.Array, count: int, translate: float, tilt: float, mirror: float
) -> jax.Array:
    """Draws shifts, small rotations and flips, as `data.augment.Augmentation.draw` does.

    Args:
        key: Random key.
        count: How many.
        translate: Largest shift as a share of the side.
        tilt: Standard deviation of a rotation in degrees.
        mirror: Probability that left and right are exchanged.

    Returns:
        Maps (count, 2, 3).
    """
    first, second = jax.random.split(key)
    u = jax.random.uniform(first, (3, count))
    angle = jnp.deg2rad(tilt * jax.random.normal(second, (count,)))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    sign = jnp.where(u[0] < mirror, -1.0, 1.0)
    linear = jnp.stack([jnp.stack([sign * cos, sign * sin], -1), jnp.stack([-sin, cos], -1)], 1)
    shift = 2 * translate * (2 * u[1:] - 1).T
    return jnp.concatenate([linear, -linear @ shift[..., None]], -1)


def colored(
    key: jax.Array, images: jax.Array, brightness: float, contrast: float, color: float
) -> jax.Array:
    """Changes brightness, contrast and the balance of the channels of each image.

    Args:
        key: Random key.
        images: float (B, S, S, C), normalized.
        brightness: Largest shift of all channels, in units of their standard deviation.
        contrast: The factor is within 1 - contrast and 1 + contrast.
        color: Largest shift of one channel alone.

    Returns:
        Images of the same shape and type.
    """
    parts = jax.random.split(key, 3)
    count, channels = len(images), images.shape[-1]

    def draw(key, shape, most):
        return most * (2 * jax.random.uniform(key, shape, images.dtype) - 1)

    factor = 1 + draw(parts[0], (count, 1, 1, 1), contrast)
    shift = draw(parts[1], (count, 1, 1, 1), brightness)
    shift += draw(parts[2], (count, 1, 1, channels), color)
    mean = images.mean((1, 2), keepdims=True)
    return (images - mean) * factor + mean + shift
