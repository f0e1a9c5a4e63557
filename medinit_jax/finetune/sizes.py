"""Images and masks resized, padded and cut, by the same rules wherever they are shown."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from medinit_jax.core.errors import UsageError
from medinit_jax.data.decode import MAX_SIDE


def shorter(image: np.ndarray, side: int) -> np.ndarray:
    """Resizes an image so that its shorter side becomes `side`, as `int(side * long / short)`.

    Raises:
        UsageError: Its longer side would exceed `decode.MAX_SIDE`.
    """
    height, width = image.shape[:2]
    least = min(height, width)
    longest = int(side * max(height, width) / least)
    if longest > MAX_SIDE:
        raise UsageError(
            f"An image of {height} x {width} pixels would become {longest:,} pixels long, more "
            f"than {MAX_SIDE:,}; crop it to what is to be seen."
        )
    return resized(image, (int(side * height / least), int(side * width / least)))


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes an image, or a mask (H, W) by the nearest pixel, to a height and width.

    Images are weighed as in the code of SWCL's authors: Pillow's bilinear, without aliasing.
    """
    if image.shape[:2] == size:
        return image
    if image.ndim == 2:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    height, width = size
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def placed(shape: tuple[int, ...], size: int) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of an image in the square that it is padded to."""
    height, width = (max(1, round(length * size / max(shape))) for length in shape)
    return (size - height) // 2, (size - width) // 2, height, width


def padded(image: np.ndarray, size: int, native: tuple[int, ...] | None = None) -> np.ndarray:
    """Resizes an image or mask to a longer side of `size` and pads it to a square with 0.

    Args:
        image: uint8 (H, W[, 3]).
        size: Side of the square.
        native: Height and width whose proportions count, if not those of `image`.
    """
    top, left, height, width = placed(native or image.shape[:2], size)
    return window(resized(image, (height, width)), -top, -left, size)


def window(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """Cuts a square out of an image or mask; what lies outside is 0."""
    height, width = image.shape[:2]
    inner = image[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
    if inner.shape[:2] == (side, side):
        return np.ascontiguousarray(inner)
    square = np.zeros((side, side, *image.shape[2:]), image.dtype)
    y, x = max(0, -top), max(0, -left)
    square[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
    return square
