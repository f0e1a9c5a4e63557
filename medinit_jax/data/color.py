"""Changes of color: uint8 RGB in, uint8 RGB out, rounded and cut to 0..255 after every change.

The definitions are those of Pillow's `ImageEnhance` and of torchvision's `ColorJitter`.
"""

import math

import cv2
import numpy as np

# Weights of red, green and blue in gray (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114])


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies uint8 (H, W, 3) by a factor; 1 changes nothing, 0 gives black."""
    return cv2.transform(image, factor * np.eye(3))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Stretches uint8 (H, W, 3) about its mean gray; 1 changes nothing, 0 gives that gray."""
    mean = _LUMA @ cv2.mean(image)[:3]
    return cv2.transform(image, np.c_[factor * np.eye(3), [(1 - factor) * mean] * 3])


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Stretches the colors of uint8 (H, W, 3) about gray; 1 changes nothing, 0 gives gray."""
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * _LUMA)


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turns the hue of uint8 (H, W, 3) by a share of the full circle; value and saturation stay.

    Hue has 256 levels on the way: a strong color may end some levels beside the exact one.
    """
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    # OpenCV writes 256 levels of hue per circle and reads 255.
    turned = np.rint(255 * ((np.arange(256) / 256 + turn) % 1)).astype(np.uint8)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 0), turned), hsv, 0)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blurs uint8 (H, W[, 3]) by a Gaussian with a deviation of `sigma` pixels, cut at 3 sigma."""
    kernel = cv2.getGaussianKernel(2 * math.ceil(3 * sigma) + 1, sigma)
    # Twice as fast as cv2.GaussianBlur, and nearer to the exact values.
    return cv2.sepFilter2D(image, -1, kernel, kernel)


CHANGES = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
    "blur": blur,
}
