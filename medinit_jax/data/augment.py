"""Host augmentation: one affine draw that moves an image and its masks together.

A draw composes laterality, flips, zoom, rotation, tilt and translation into one matrix, so that
every pixel is interpolated once. Draws depend only on the generator that is passed in.
"""

import dataclasses
import math
from typing import Literal

import cv2
import numpy as np

# Mean and standard deviation of red, green and blue in 0..1. The fundus figures are those of
# SWCL put into RGB order; the gray ones are round values for percentile-stretched radiographs.
NORMALIZATION = {
    "fundus": ((0.3219, 0.2259, 0.1633), (0.3038, 0.2195, 0.1756)),
    "gray": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}

_BORDERS = {"zero": cv2.BORDER_CONSTANT, "reflect": cv2.BORDER_REFLECT_101}


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges of the random affine map; the default changes nothing.

    Attributes:
        zoom: Lowest and highest zoom factor; above 1 enlarges, below 1 shows a border.
        translate: Largest shift, as a share of the image side, uniform in both directions.
        tilt: Standard deviation of a normal rotation, in degrees.
        rotate: Largest angle of a uniform rotation, in degrees.
        mirror: Probability of a left-right flip.
        flip: Probability of an up-down flip.
        border: What lies outside the image: "zero" (black) or "reflect".
        normalize_laterality: Mirrors left eyes first, so that all look like right eyes.
    """

    zoom: tuple[float, float] = (1.0, 1.0)
    translate: float = 0.0
    tilt: float = 0.0
    rotate: float = 0.0
    mirror: float = 0.0
    flip: float = 0.0
    border: Literal["zero", "reflect"] = "zero"
    normalize_laterality: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether no draw can change an image."""
        still = (self.translate, self.tilt, self.rotate, self.mirror, self.flip)
        return not any(still) and self.zoom == (1.0, 1.0) and not self.normalize_laterality

    def scaled(self, difficulty: float) -> "Augmentation":
        """Scales translation, tilt and mirror by a difficulty in [0, 1]; zoom and rest stay."""
        if difficulty == 1.0:
            return self
        return dataclasses.replace(
            self,
            translate=self.translate * difficulty,
            tilt=self.tilt * difficulty,
            mirror=self.mirror * difficulty,
        )

    def draw(self, rng: np.random.Generator, eye: int = 0) -> np.ndarray:
        """Draws one affine map in relative coordinates.

        The same number of random values is taken whatever the settings, so that draws with
        different difficulties differ only in their strength.

        Args:
            rng: Source of randomness.
            eye: +1 right, -1 left, 0 unknown; only used to normalize laterality.

        Returns:
            float64 (2, 3) map from output to input coordinates, both with the image center as
            origin and half the image side as unit.
        """
        u = rng.random(6)
        zoom = self.zoom[0] + (self.zoom[1] - self.zoom[0]) * u[0]
        degrees = self.tilt * rng.standard_normal() + self.rotate * (2 * u[1] - 1)
        mirrored = (u[2] < self.mirror) != (self.normalize_laterality and eye < 0)
        flipped = u[3] < self.flip
        shift = 2 * self.translate * (2 * u[4:6] - 1)
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        # Output to input: undo the shift, then the rotation and zoom, then the flips.
        linear = np.array([[cos, sin], [-sin, cos]]) / zoom
        linear[0] *= -1.0 if mirrored else 1.0
        linear[1] *= -1.0 if flipped else 1.0
        return np.concatenate([linear, (-linear @ shift)[:, None]], axis=1)


def hard(mirror: float = 0.5, translate: float = 0.2, tilt: float = 10.0) -> Augmentation:
    """Returns the draws of the hard pretext, which a thumbnail does not solve."""
    return Augmentation(translate=translate, tilt=tilt, mirror=mirror)


def warp(
    image: np.ndarray,
    matrix: np.ndarray,
    size: int | None = None,
    border: Literal["zero", "reflect"] = "zero",
    mask: bool = False,
    full: tuple[int, int] | None = None,
) -> np.ndarray:
    """Applies a drawn map.

    Args:
        image: uint8 or float32 (H, W) or (H, W, C).
        matrix: float64 (2, 3) from `Augmentation.draw`.
        size: Side of the square result; None keeps H and W.
        border: What lies outside the image.
        mask: Whether values are class numbers: nearest neighbor instead of bilinear.
        full: Height and width of the whole image, if it was decoded at a half, a quarter or an
            eighth of them: it then moves exactly as its mask of that size does.

    Returns:
        The moved image, (size, size[, C]) or of the full size, same dtype.
    """
    height, width = full or image.shape[:2]
    out_height, out_width = (size, size) if size else (height, width)
    if not mask:
        image = halved(image, min(out_height, out_width))
    pixels = _pixel_matrix(matrix, (height, width), (out_height, out_width))
    # Pixel i of an image that is smaller by f averages the pixels f * i to f * i + f - 1.
    smaller = 2 ** math.ceil(math.log2(height / image.shape[0]))
    pixels[:, 2] += (smaller - 1) * -0.5
    pixels /= smaller
    method = cv2.INTER_NEAREST if mask else cv2.INTER_LINEAR
    return cv2.warpAffine(
        image,
        pixels,
        (out_width, out_height),
        flags=method | cv2.WARP_INVERSE_MAP,
        borderMode=_BORDERS[border],
    )


def halved(image: np.ndarray, least: int) -> np.ndarray:
    """Halves an image until another time would leave less than `least` pixels of a side.

    Bilinear sampling of what is more than twice as large would alias. Halving by two is exact and
    many times faster than averaging by a broken factor.

    Args:
        image: (H, W) or (H, W, C); an odd side is made even by repeating the last pixel.
        least: Shorter side that is needed.

    Returns:
        The means of 2 x 2, 4 x 4 ... pixels.
    """
    while min(image.shape[:2]) >= 2 * least:
        height, width = image.shape[:2]
        if height % 2 or width % 2:
            image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        size = (-(-width // 2), -(-height // 2))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return image


def _pixel_matrix(matrix, source: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """Converts a relative map to pixel indices, whose origin is the first pixel's center."""
    half_source = np.array([source[1], source[0]]) / 2
    half_target = np.array([target[1], target[0]]) / 2
    linear = matrix[:, :2] * half_source[:, None] / half_target[None, :]
    shift = matrix[:, 2] * half_source + half_source - 0.5 - linear @ (half_target - 0.5)
    return np.concatenate([linear, shift[:, None]], axis=1)


def normalize(images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """Converts uint8 (..., 3) to float32 with the given mean and deviation of each channel."""
    scale = (1 / (255 * np.asarray(std))).astype(np.float32)
    offset = (np.asarray(mean) / np.asarray(std)).astype(np.float32)
    return images * scale - offset
