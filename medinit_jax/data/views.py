"""Random views of one image, as contrastive pretraining compares them.

Source: Chen et al. 2020, "A simple framework for contrastive learning of visual representations",
appendix A; crops as in Szegedy et al. 2015.
"""

import dataclasses
import math
from typing import NamedTuple

import cv2
import numpy as np

from medinit_jax.data.augment import halved
from medinit_jax.data.color import CHANGES

_ATTEMPTS = 10
_JITTER = ("brightness", "contrast", "saturation", "hue")


class View(NamedTuple):
    """One drawn view.

    Attributes:
        box: Top, left, height and width of the crop in pixels.
        mirrored: Whether left and right are exchanged.
        changes: Keys of `color.CHANGES` and their amounts, in the order in which they are made.
    """

    box: tuple[int, int, int, int]
    mirrored: bool
    changes: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Views:
    """Ranges of the random views; the defaults are those of SimCLR.

    Attributes:
        area: Lowest and highest area of the crop, as a share of the image's.
        aspect: Lowest and highest width over height of the crop.
        mirror: Probability of a left-right flip.
        jitter: Probability that brightness, contrast, saturation and hue change.
        brightness: The factor is within 1 - brightness (but not below 0) and 1 + brightness.
        contrast: The same for contrast.
        saturation: The same for saturation.
        hue: Largest turn of the hue, as a share of the full circle.
        gray: Probability that all color is lost.
        blur: Probability of a Gaussian blur.
        sigma: Lowest and highest deviation of the blur, in pixels of the view.
    """

    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    mirror: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    gray: float = 0.2
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def draw(self, rng: np.random.Generator, height: int, width: int) -> View:
        """Draws a view of an image of `height` x `width` pixels."""
        box = self._crop(rng, height, width)
        u = rng.random(9).tolist()
        changes = []
        if u[0] < self.jitter:
            amounts = (
                *map(_factor, (self.brightness, self.contrast, self.saturation), u[4:7]),
                self.hue * (2 * u[7] - 1),
            )
            order = rng.permutation(len(_JITTER)).tolist()
            changes += [(_JITTER[i], amounts[i]) for i in order]
        if u[1] < self.gray:
            changes.append(("saturation", 0.0))
        if u[2] < self.blur:
            changes.append(("blur", self.sigma[0] + (self.sigma[1] - self.sigma[0]) * u[8]))
        return View(box, u[3] < self.mirror, tuple(changes))

    def _crop(self, rng, height: int, width: int) -> tuple[int, int, int, int]:
        for _ in range(_ATTEMPTS):
            u = rng.random(4).tolist()
            area = height * width * (self.area[0] + (self.area[1] - self.area[0]) * u[0])
            low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
            aspect = math.exp(low + (high - low) * u[1])
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1)), h, w
        # The largest box in the middle whose shape is allowed.
        w = max(1, min(width, round(height * self.aspect[1])))
        h = max(1, min(height, round(width / self.aspect[0])))
        return (height - h) // 2, (width - w) // 2, h, w


def _factor(strength: float, u: float) -> float:
    low = max(0.0, 1 - strength)
    return low + (1 + strength - low) * u


def take_view(image: np.ndarray, view: View, size: int) -> np.ndarray:
    """Makes a drawn view.

    Args:
        image: uint8 RGB (H, W, 3) of the height and width for which the view was drawn.
        view: From `Views.draw`.
        size: Side of the result in pixels.

    Returns:
        uint8 (size, size, 3).
    """
    top, left, height, width = view.box
    crop = halved(image[top : top + height, left : left + width], size)
    result = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
    if view.mirrored:
        result = cv2.flip(result, 1)
    for name, amount in view.changes:
        result = CHANGES[name](result, amount)
    return result


def two_views(image: np.ndarray, views: Views, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws and makes two views of one image.

    Args:
        image: uint8 RGB (H, W, 3).
        views: Ranges of the draws.
        size: Side of the views in pixels.
        rng: Source of randomness.

    Returns:
        uint8 (2, size, size, 3).
    """
    drawn = (views.draw(rng, *image.shape[:2]) for _ in range(2))
    return np.stack([take_view(image, view, size) for view in drawn])
