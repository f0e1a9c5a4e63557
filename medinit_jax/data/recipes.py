"""How images of a task are prepared, moved and cropped for fine-tuning and for judging.

A recipe has four parts: `keep` (decoded image -> what stays in memory), `draw` (a training view of
it), `view` (what is judged) and, for segmentation, `restore` (logits of the view -> of the image).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np

from medinit_jax.data.augment import Augmentation, halved, warp
from medinit_jax.data.color import saturation
from medinit_jax.data.decode import Fit, fit_square
from medinit_jax.data.examples import OUTSIDE
from medinit_jax.data.paired import PairAugmentation, augment_pair
from medinit_jax.data.views import Views, take_view


@dataclasses.dataclass(frozen=True)
class Whole:
    """Classification of whole images, as the hyper-initializer paper trains.

    Attributes:
        size: Side of the views in pixels.
        fit: How an image becomes square.
        ranges: Of the random map.
    """

    size: int
    fit: Fit
    ranges: Augmentation

    def keep(self, image: np.ndarray) -> np.ndarray:
        """Returns the square image."""
        return fit_square(image, self.size, self.fit)

    def draw(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns a training view, uint8 (size, size, 3)."""
        return warp(image, self.ranges.draw(rng), None, self.ranges.border)

    def view(self, image: np.ndarray) -> np.ndarray:
        """Returns what is judged, uint8 (size, size, 3)."""
        return image


@dataclasses.dataclass(frozen=True)
class Cropped:
    """Classification of crops, as SWCL fine-tunes: stored, judged and cropped at 350:256:224.

    Attributes:
        size: Side of the views in pixels.
        mirror: Probability of a left-right flip.
        gray: Probability that all color is lost.
    """

    size: int
    mirror: float = 0.5
    gray: float = 0.2

    def keep(self, image: np.ndarray) -> np.ndarray:
        """Returns the image with its shorter side at 350/224 of the size."""
        return shorter_side(image, round(self.size * 350 / 224))

    def draw(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns a training view, uint8 (size, size, 3)."""
        views = Views(area=(0.8, 1.0), mirror=self.mirror, jitter=0.0, gray=self.gray, blur=0.0)
        return take_view(image, views.draw(rng, *image.shape[:2]), self.size)

    def view(self, image: np.ndarray) -> np.ndarray:
        """Returns the middle of what is judged, uint8 (size, size, 3)."""
        image = shorter_side(image, round(self.size * 256 / 224))
        top, left = ((side - self.size + 1) // 2 for side in image.shape[:2])
        return image[top : top + self.size, left : left + self.size]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Segmentation by random crops at native size; whole images are judged by windows.

    Attributes:
        size: Side of the crops in pixels.
        mirror: Probability of a left-right flip.
        flip: Probability of an up-down flip.
        turn: Whether crops are turned by a random right angle.
        gray: Probability that all color is lost.
        light: Strength of random brightness and contrast.
    """

    size: int
    mirror: float = 0.5
    flip: float = 0.0
    turn: bool = False
    gray: float = 0.2
    light: float = 0.0

    def keep(self, image: np.ndarray) -> np.ndarray:
        """Returns the image as it is."""
        return image

    def draw(
        self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns a crop uint8 (size, size, 3) and its mask (size, size), `OUTSIDE` beyond them."""
        u = rng.random(8)
        rows, columns = (
            slice(start := int(v * max(1, side - self.size + 1)), start + self.size)
            for v, side in zip(u[:2], mask.shape, strict=True)
        )
        image, mask = image[rows, columns], mask[rows, columns]
        missing = [(0, self.size - side) for side in mask.shape]
        if any(after for _, after in missing):
            image = np.pad(image, [*missing, (0, 0)])
            mask = np.pad(mask, missing, constant_values=OUTSIDE)
        turns = int(4 * u[2]) if self.turn else 0
        image, mask = np.rot90(image, turns), np.rot90(mask, turns)
        if u[3] < self.mirror:
            image, mask = image[:, ::-1], mask[:, ::-1]
        if u[4] < self.flip:
            image, mask = image[::-1], mask[::-1]
        image = np.ascontiguousarray(image)
        if u[5] < self.gray:
            image = saturation(image, 0.0)
        if self.light:
            bright, stretch = 1 + self.light * (2 * u[6:8] - 1)
            mean = image.mean()
            changed = (image.astype(np.float32) * bright - mean) * stretch + mean
            image = np.clip(np.rint(changed), 0, 255).astype(np.uint8)
        return image, mask

    def view(self, image: np.ndarray) -> np.ndarray:
        """Returns what is judged: the image as it is."""
        return image

    def restore(self, logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Returns logits (H, W, classes) of the image, which they are already."""
        return logits


@dataclasses.dataclass(frozen=True)
class Resized:
    """Segmentation of whole images padded to a square and resized, as the first paper trains.

    Attributes:
        size: Side of the views in pixels.
        ranges: Of the random changes.
    """

    size: int
    ranges: PairAugmentation

    def keep(self, image: np.ndarray) -> np.ndarray:
        """Returns the image as it is."""
        return image

    def draw(
        self, image: np.ndarray, mask: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns a view uint8 (size, size, 3) and its mask (size, size)."""
        return augment_pair(to_square(image), to_square(mask, OUTSIDE), self.ranges, self.size, rng)

    def view(self, image: np.ndarray) -> np.ndarray:
        """Returns what is judged, uint8 (size, size, 3)."""
        square = to_square(image)
        method = cv2.INTER_AREA if self.size < len(square) else cv2.INTER_LINEAR
        return cv2.resize(square, (self.size, self.size), interpolation=method)

    def restore(self, logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Returns logits (H, W, classes) of the image from those of the view.

        Args:
            logits: Float32 (size, size, classes).
            size: Height and width of the image.
        """
        side = max(size)
        # Bilinear between centers of pixels, as PyTorch's align_corners=False.
        large = cv2.resize(logits, (side, side), interpolation=cv2.INTER_LINEAR)
        large = large.reshape(side, side, -1)
        top, left = ((side - length) // 2 for length in size)
        return large[top : top + size[0], left : left + size[1]]


Recipe = Whole | Cropped | Windows | Resized


def shorter_side(image: np.ndarray, size: int) -> np.ndarray:
    """Resizes an image so that its shorter side has a length; the longer one is rounded down."""
    height, width = image.shape[:2]
    short = min(height, width)
    if short == size:
        return image
    new = (size * width // short, size) if height == short else (size, size * height // short)
    method = cv2.INTER_AREA if size < short else cv2.INTER_LINEAR
    return cv2.resize(halved(image, size), new, interpolation=method)


def to_square(image: np.ndarray, value: int = 0) -> np.ndarray:
    """Pads (H, W[, C]) on both sides of its shorter side to a square with a value."""
    side = max(image.shape[:2])
    missing = [side - length for length in image.shape[:2]]
    if not any(missing):
        return image
    pads = [(n // 2, n - n // 2) for n in missing]
    return np.pad(image, pads + [(0, 0)] * (image.ndim - 2), constant_values=value)


def _hyper512(size: int, modality: str) -> Whole:
    fundus = modality == "fundus"
    # Radiographs and slices are never seen upside down.
    ranges = Augmentation(
        zoom=(0.8, 1.2), rotate=15.0, mirror=0.5, flip=0.5 if fundus else 0.0, border="zero"
    )
    return Whole(size or 512, "fov" if fundus else "pad", ranges)


def _hyper512seg(size: int, modality: str) -> Resized:
    geometry = Augmentation(zoom=(0.8, 1.2), rotate=15.0, mirror=0.5, flip=0.5)
    return Resized(size or 512, PairAugmentation(geometry, 0.0, 0.0))


# Name -> (side of the images or 0, modality) -> recipe; the first two are of classification.
CLASSIFICATION: dict[str, Any] = {
    "hyper512": _hyper512,
    "swcl224": lambda size, modality: Cropped(size or 224),
}
SEGMENTATION: dict[str, Any] = {
    "hyper512seg": _hyper512seg,
    "swcl384": lambda size, modality: Windows(size or 384),
    "crops": lambda size, modality: Windows(size or 128, flip=0.5, turn=True, gray=0.0, light=0.2),
}


def without_flips(recipe: Recipe) -> Recipe:
    """Returns a recipe whose views keep which way is up, so that turned ones can be told apart."""
    if isinstance(recipe, Whole):
        ranges = dataclasses.replace(recipe.ranges, mirror=0.0, flip=0.0)
        return dataclasses.replace(recipe, ranges=ranges)
    return dataclasses.replace(recipe, mirror=0.0)  # pyright: ignore[reportCallIssue]
