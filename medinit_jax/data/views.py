"""Random views of one image, as contrastive pretraining compares them.

Sources: Chen et al. 2020, "A simple framework for contrastive learning of visual representations",
appendix A; crops as in Szegedy et al. 2015; and the papers at the recipes below.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
from PIL import Image

from medinit_jax.data import color, pillow_color
from medinit_jax.data.augment import halved

Interpolation = Literal["fast", "bilinear", "bicubic"]
_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_ATTEMPTS = 10
_JITTER = ("brightness", "contrast", "saturation", "hue")
_SOLARIZED_FROM = 0.5


class View(NamedTuple):
    """One drawn view.

    Attributes:
        box: Top, left, height and width of the crop in pixels.
        mirrored: Whether left and right are exchanged.
        changes: Keys of `color.CHANGES` and their amounts, in the order in which they are made.
        interpolation: How the crop is resized and its color changed, see `Views`.
    """

    box: tuple[int, int, int, int]
    mirrored: bool
    changes: tuple[tuple[str, float], ...]
    interpolation: Interpolation = "fast"


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
        solarize: Probability that what is brighter than the middle is inverted.
        interpolation: How crops are resized, without aliasing: "fast" halves them first as often
            as that leaves enough; "bilinear" and "bicubic" weigh all pixels, as Pillow does. With
            these two, colors are Pillow's as well, to the level; with "fast" those of `color`.
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
    solarize: float = 0.0
    interpolation: Interpolation = "fast"

    def draw(self, rng: np.random.Generator, height: int, width: int) -> View:
        """Draws a view of an image of `height` x `width` pixels."""
        box = self._crop(rng, height, width)
        u = rng.random(10).tolist()
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
        if u[9] < self.solarize:
            changes.append(("solarize", _SOLARIZED_FROM))
        return View(box, u[3] < self.mirror, tuple(changes), self.interpolation)

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


@dataclasses.dataclass(frozen=True)
class ViewRecipe:
    """All views that one image is given.

    Attributes:
        views: Ranges of each view.
        size: Side of the views in pixels.
        local: Ranges of each view that shows a smaller part.
        local_size: Side of these in pixels.
    """

    views: tuple[Views, ...]
    size: int = 224
    local: tuple[Views, ...] = ()
    local_size: int = 96


def dino(local: int = 8) -> ViewRecipe:
    """Returns the views of DINO: two of much of the image, and some of little of it.

    Args:
        local: How many of little.

    Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers
    (arXiv 2104.14294), with its authors' code.
    """
    first = dataclasses.replace(_JITTERED, area=(0.4, 1.0), blur=1.0)
    second = dataclasses.replace(first, blur=0.1, solarize=0.2)
    part = dataclasses.replace(first, area=(0.05, 0.4), blur=0.5)
    return ViewRecipe((first, second), local=(part,) * local)


_STILL = Views(area=(0.8, 1.0), jitter=0.0, gray=0.0, blur=0.0, interpolation="bilinear")
_LABELER = dataclasses.replace(
    _STILL, jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1
)
_CONTRASTIVE = dataclasses.replace(_LABELER, gray=0.2, blur=0.5, solarize=0.1)
_JITTERED = Views(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, interpolation="bicubic")

# Without another source: SWCL (arXiv 2108.02122) with its authors' code; simclr_orig as above.
RECIPES: dict[str, ViewRecipe] = {
    "contrastive": ViewRecipe((_CONTRASTIVE,) * 2),
    "labeler": ViewRecipe((_LABELER,) * 4, 384),
    "sup_pre": ViewRecipe((_STILL,), 448),
    "ft_cls": ViewRecipe((dataclasses.replace(_STILL, gray=0.2),)),
    "simclr_orig": ViewRecipe((Views(),) * 2),
    # Grill et al., Bootstrap Your Own Latent (arXiv 2006.07733), appendix B.
    "byol_asym": ViewRecipe(
        (
            dataclasses.replace(_JITTERED, blur=1.0),
            dataclasses.replace(_JITTERED, blur=0.1, solarize=0.2),
        )
    ),
    "dino_official": dino(),
}


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
    result = _resized(image[top : top + height, left : left + width], size, view.interpolation)
    if view.mirrored:
        result = cv2.flip(result, 1)
    changes = color.CHANGES if view.interpolation == "fast" else pillow_color.CHANGES
    for name, amount in view.changes:
        result = changes[name](result, amount)
    return result


def _resized(crop: np.ndarray, size: int, interpolation: Interpolation) -> np.ndarray:
    if interpolation == "fast":
        return cv2.resize(halved(crop, size), (size, size), interpolation=cv2.INTER_LINEAR)
    resampling = _RESAMPLING[interpolation]
    return np.array(Image.fromarray(crop).resize((size, size), resampling))


def make_views(
    image: np.ndarray, recipe: ViewRecipe, rng: np.random.Generator, size: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Draws and makes all views of one image.

    Args:
        image: uint8 RGB (H, W, 3).
        recipe: Which views.
        rng: Source of randomness.
        size: Side of the views in pixels, local ones in proportion; 0: the recipe's.

    Returns:
        uint8 (views, size, size, 3), and uint8 (local views, side, side, 3).
    """
    size = size or recipe.size
    side = round(recipe.local_size * size / recipe.size)
    return _taken(image, recipe.views, rng, size), _taken(image, recipe.local, rng, side)


def _taken(
    image: np.ndarray, views: Sequence[Views], rng: np.random.Generator, size: int
) -> np.ndarray:
    made = np.empty((len(views), size, size, 3), np.uint8)
    for place, ranges in enumerate(views):
        made[place] = take_view(image, ranges.draw(rng, *image.shape[:2]), size)
    return made
