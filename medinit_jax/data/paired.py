"""Random changes of an image and its mask: one map moves both, only the image changes its light."""

import dataclasses

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.data import color
from medinit_jax.data.augment import Augmentation, warp


@dataclasses.dataclass(frozen=True)
class PairAugmentation:
    """Ranges of the draws for an image with a mask.

    Attributes:
        geometry: Zoom, rotation, shift and flips, the same for image and mask.
        brightness: The factor is within 1 - brightness and 1 + brightness.
        contrast: The same for contrast.
    """

    geometry: Augmentation = Augmentation(zoom=(0.8, 1.2), rotate=30.0, mirror=0.5, flip=0.5)
    brightness: float = 0.2
    contrast: float = 0.2


def augment_pair(
    image: np.ndarray,
    mask: np.ndarray,
    ranges: PairAugmentation,
    size: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws one map and moves an image and its mask by it.

    Args:
        image: uint8 RGB (H, W, 3), or the same decoded at a half, a quarter or an eighth of the
            mask's size, as `decode(content, at_least=size, headroom=1)` does.
        mask: uint8 class numbers (H, W), or several masks (H, W, n), n at most 4.
        ranges: Ranges of the draws.
        size: Side of the results in pixels; what is not square is stretched.
        rng: Source of randomness.

    Returns:
        Image uint8 (size, size, 3) and mask (size, size[, n]), which holds none but the mask's
        values, and 0 outside of it unless `geometry.border` is "reflect".

    Raises:
        UsageError: The sizes of image and mask do not fit.
    """
    if not any(image.shape[:2] == tuple(-(-s // f) for s in mask.shape[:2]) for f in (1, 2, 4, 8)):
        raise UsageError(
            f"An image of {image.shape[:2]} pixels does not fit a mask of {mask.shape[:2]}; both "
            "need the same size, or the image a half, a quarter or an eighth of it."
        )
    matrix = ranges.geometry.draw(rng)
    bright, stretch = 1 + np.array([ranges.brightness, ranges.contrast]) * rng.uniform(-1, 1, 2)
    border = ranges.geometry.border
    moved = warp(image, matrix, size, border, full=mask.shape[:2])
    moved = color.contrast(color.brightness(moved, bright), stretch)
    return moved, warp(mask, matrix, size, border, mask=True)
