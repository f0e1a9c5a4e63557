"""Changes of color as Pillow makes them, level by level: uint8 RGB in, uint8 RGB out.

torchvision's `ColorJitter` on Pillow's images is these four, so that recipes of code that trained
with it see the same pixels. Those of `color` are faster, and up to some levels beside them.
"""

import cv2
import numpy as np
from PIL import Image, ImageEnhance

from medinit_jax.data import color

_LEVELS = tuple(range(256))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends uint8 (H, W, 3) with black; 1 changes nothing, 0 gives black."""
    return _blended_levels(image, 0, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends uint8 (H, W, 3) with its mean gray; 1 changes nothing, 0 gives that gray."""
    gray = Image.fromarray(image).convert("L")
    return _blended_levels(image, int(np.asarray(gray).mean() + 0.5), factor)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends uint8 (H, W, 3) with its gray; 1 changes nothing, 0 gives gray."""
    return np.array(ImageEnhance.Color(Image.fromarray(image)).enhance(factor))


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turns the hue of uint8 (H, W, 3) by a share of the full circle, in whole levels of 255."""
    turned = [(level + int(255 * turn)) % 256 for level in _LEVELS]
    hsv = Image.fromarray(image).convert("HSV").point([*turned, *_LEVELS, *_LEVELS])
    return np.array(hsv.convert("RGB"))


CHANGES = {
    **color.CHANGES,
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
}


def _blended_levels(image: np.ndarray, level: int, factor: float) -> np.ndarray:
    """Blends every value with one level: what Pillow makes of each of the 256 stands in a table."""
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    table = Image.blend(Image.new("L", ramp.size, level), ramp, factor)
    return cv2.LUT(image, np.asarray(table).ravel())
