"""Abnormality maps of a labeler, and the scores of the patches under them.

Source: SWCL (arXiv 2108.02122), section III-B, and its code: the background mask is the code's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.models.ops import aligned_interpolation
from medinit_jax.swcl.patch_geometry import boxes

MASKS: tuple[str, ...] = ("background", "none")
# Brightness of a channel in [0, 1] up to which a pixel is background, before normalization.
_DARK = 15 / 255


def background_threshold(mean: Sequence[float], std: Sequence[float]) -> float:
    """Returns the sum over the channels of a normalized pixel that is as bright as background.

    Args:
        mean: Of every channel, of images in [0, 1].
        std: Of every channel.
    """
    return float(sum((_DARK - m) / s for m, s in zip(mean, std, strict=True)))


def foreground(images: Any, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Returns bool (..., H, W): where normalized images (..., H, W, C) are above the background."""
    return images.astype(jnp.float32).sum(-1) > jnp.float32(background_threshold(mean, std))


def abnormality(
    features: Any,
    kernel: Any,
    images: Any,
    mean: Sequence[float],
    std: Sequence[float],
    crop: int,
    mask: str = "background",
) -> tuple[jax.Array, jax.Array]:
    """Returns maps of abnormality and the mean of each over its five patches.

    The two raw class activation maps, without bias, are interpolated to the size of the image with
    their corners in place, and then compared by a softmax. The softmax of two is the sigmoid of
    their difference, and interpolation is linear, so only the difference is interpolated.

    Args:
        features: Float (B, h, w, C), before global average pooling.
        kernel: Float (C, 2) of the labeler's linear layer: normal, abnormal.
        images: Float (B, S, S, channels), normalized.
        mean: By which they were normalized, per channel.
        std: The same for the standard deviation.
        crop: Side of a patch in pixels.
        mask: "background" sets the map to 0 where the image is dark, "none" keeps it.

    Returns:
        Float32 (B, S, S) in [0, 1], and float32 (B, 5), scores in the order of
        `patch_geometry.CUTS`, of patches before mirroring; background counts as 0.

    Raises:
        UsageError: There is no such mask, or no image or patch of such a size.
    """
    if mask not in MASKS:
        raise UsageError(f"There is no mask {mask!r} of abnormality; use {' or '.join(MASKS)}.")
    height, width = images.shape[1:3]
    if height != width:
        raise UsageError(
            f"Abnormality is scored on square images, not on {height} x {width} pixels; crop them."
        )
    corners = boxes(height, crop)
    weights = jnp.asarray(kernel[:, 1] - kernel[:, 0], jnp.float32)
    values = jnp.asarray(features, jnp.float32)
    difference = jnp.einsum("bhwc,c->bhw", values, weights, precision="highest")
    rows, columns = (
        jnp.asarray(np.asarray(aligned_interpolation(have, height), np.float32))
        for have in difference.shape[1:]
    )
    logits = jnp.einsum("yh,bhw,xw->byx", rows, difference, columns, precision="highest")
    maps = jax.nn.sigmoid(logits)
    if mask == "background":
        maps = jnp.where(foreground(images, mean, std), maps, 0)
    patches = [maps[:, top : top + crop, left : left + crop] for top, left in corners.values()]
    return maps, jnp.stack([patch.mean((1, 2)) for patch in patches], -1)
