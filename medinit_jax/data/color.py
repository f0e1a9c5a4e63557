"""Changes of color: uint8 RGB in, uint8 RGB out, rounded and cut to 0..255 after every change.

The definitions are those of Pillow's `ImageEnhance` and of torchvision's `ColorJitter`.
"""

import math

import cv2
import numpy as np

# Weights of red, green and blue in gray (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114])
_SAME, _GRAY = np.eye(3), np.tile(_LUMA, (3, 1))
_TURNS = np.arange(256) * (255 / 256)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies uint8 (H, W, 3) by a factor; 1 changes nothing, 0 gives black."""
    return cv2.transform(image, factor * _SAME)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Stretches uint8 (H, W, 3) about its mean gray; 1 changes nothing, 0 gives that gray."""
    mean = _LUMA @ cv2.mean(image)[:3]
    affine = np.empty((3, 4))
    affine[:, :3] = factor * _SAME
    affine[:, 3] = (1 - factor) * mean
    return cv2.transform(image, affine)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Stretches the colors of uint8 (H, W, 3) about gray; 1 changes nothing, 0 gives gray."""
    return cv2.transform(image, factor * _SAME + (1 - factor) * _GRAY)


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turns the hue of uint8 (H, W, 3) by a share of the full circle; value and saturation stay.

    Hue has 256 levels on the way: a strong color may end some levels beside the exact one.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    # OpenCV writes 256 levels of hue per circle and reads 255.
    turned = np.rint((_TURNS + 255 * turn) % 255).astype(np.uint8)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 0), turned), hsv, 0)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs uint8 or float32 (H, W[, 3]) by a Gaussian of `sigma` pixels; borders are mirrored.

    The kernel ends beyond 4 sigma, where the 23 taps of SWCL and SimCLR hold nothing any more for
    the sigmas up to 2 that they draw.
    """
    kernel = cv2.getGaussianKernel(2 * math.ceil(4 * sigma) + 1, sigma, cv2.CV_32F)
    # Twice as fast as cv2.GaussianBlur, and nearer to the exact values.
    return cv2.sepFilter2D(image, -1, kernel, kernel)


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Inverts what is at least `threshold`, a share of white, in uint8 (H, W, 3)."""
    levels = np.arange(256)
    table = np.where(levels >= 255 * threshold, 255 - levels, levels)
    return cv2.LUT(image, table.astype(np.uint8))


CHANGES = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
    "blur": blur,
    "solarize": solarize,
}


def viridis(shares: np.ndarray) -> np.ndarray:
    """Returns the colors uint8 (H, W, 3) of values (H, W) in 0..1, dark to bright."""
    levels = np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
