"""Raster primitives that all phantoms share: smooth noise, supersampled layers, outlines.

Phantoms are drawn in *field units*: x to the right, y down, the unit a property of the frame.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np

SUPERSAMPLE = 2
# Drawing coordinates are fixed-point integers with this many fractional bits.
_SHIFT = 5


def smooth_noise(rng: np.random.Generator, cells: int, size: int, sd: float = 1.0) -> np.ndarray:
    """Draws noise that varies over about `size / cells` pixels.

    Args:
        rng: Source of randomness.
        cells: Side of the coarse normal grid.
        size: Side of the result, in pixels.
        sd: Standard deviation of the grid values.

    Returns:
        float32 (size, size), the grid enlarged bicubically.
    """
    return enlarge(rng.standard_normal((cells, cells), dtype=np.float32) * np.float32(sd), size)


def enlarge(grid: np.ndarray, size: int) -> np.ndarray:
    """Resizes a float32 (n, n) grid to (size, size) bicubically."""
    middle = 4 * len(grid)
    if middle < size // 2:
        # OpenCV is slow at large factors; at four points per cell linear steps are invisible.
        grid = cv2.resize(grid, (middle, middle), interpolation=cv2.INTER_CUBIC)
        return cv2.resize(grid, (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def soft_step(distance: np.ndarray, softness: float) -> np.ndarray:
    """Maps a signed distance to 0..1 with a logistic edge of the given softness."""
    scaled = np.clip(distance * np.float32(1.0 / softness), -30.0, 30.0)
    return 1.0 / (1.0 + np.exp(-scaled))


def rough_outlines(
    rng: np.random.Generator,
    center: tuple[np.ndarray, np.ndarray],
    radii: tuple[np.ndarray, np.ndarray],
    angle: np.ndarray,
    roughness: np.ndarray | float,
    corners: int = 14,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws irregular closed outlines around ellipses.

    Args:
        rng: Source of randomness.
        center: x (n,) and y (n,) of the middles, in field units.
        radii: Half axes (n,) before rotation, in field units.
        angle: Rotation (n,) of the ellipses in radians.
        roughness: Relative standard deviation of the radius from corner to corner.
        corners: Number of corners.

    Returns:
        x and y (n, corners) in field units.
    """
    turn = np.arange(corners) * (2 * math.pi / corners)
    noise = rng.standard_normal((len(angle), corners))
    radius = 1 + np.asarray(roughness).reshape(-1, 1) * noise
    along, across = (r[:, None] * radius for r in radii)
    along *= np.cos(turn)
    across *= np.sin(turn)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x = center[0][:, None] + cos * along - sin * across
    return x, center[1][:, None] + sin * along + cos * across


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where field units lie in the image.

    Attributes:
        size: Side of the square image in pixels.
        scale: Pixels per field unit.
        tilt: Rotation of the field in radians, clockwise as seen.
        offset: Shift of the field's origin from the image center, in field units.
    """

    size: int
    scale: float
    tilt: float = 0.0
    offset: tuple[float, float] = (0.0, 0.0)

    @property
    def center(self) -> float:
        """Pixel coordinate of the image center."""
        return (self.size - 1) / 2

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the field coordinates of all pixels.

        Returns:
            float32 x and y that broadcast to (S, S): a row and a column if there is no tilt, which
            is what keeps arithmetic on them cheap.
        """
        axis = np.arange(self.size, dtype=np.float32) - np.float32(self.center)
        axis *= np.float32(1 / self.scale)
        across, down = (axis - np.float32(shift) for shift in self.offset)
        x, y = across[None, :], down[:, None]
        if self.tilt:
            cos, sin = np.float32(math.cos(self.tilt)), np.float32(math.sin(self.tilt))
            x, y = x * cos + y * sin, y * cos - x * sin
        return x, y

    def pixels(self, x, y):
        """Maps field coordinates (floats or arrays) to pixel coordinates."""
        if self.tilt:
            cos, sin = math.cos(self.tilt), math.sin(self.tilt)
            x, y = x * cos - y * sin, x * sin + y * cos
        return (
            (x + self.offset[0]) * self.scale + self.center,
            (y + self.offset[1]) * self.scale + self.center,
        )


class Layer:
    """A gray canvas at twice the resolution, drawn on in field units.

    Attributes:
        frame: Geometry of the image.
        unit: Subpixels per field unit.
        used: False while nothing was drawn, so that empty layers cost nothing.
    """

    def __init__(self, frame: Frame):
        """Makes an empty canvas for the frame."""
        self.frame = frame
        self.unit = frame.scale * SUPERSAMPLE
        self.used = False

    @functools.cached_property
    def _canvas(self) -> np.ndarray:
        side = self.frame.size * SUPERSAMPLE
        return np.zeros((side, side), np.uint8)

    def points(self, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
        """Returns int32 (..., 2) canvas coordinates of field points, for `fill`."""
        self.used = True
        px, py = self.frame.pixels(x, y)
        points = np.empty((*np.shape(px), 2), np.float32)
        points[..., 0] = px
        points[..., 1] = py
        points *= SUPERSAMPLE
        points += (SUPERSAMPLE - 1) / 2
        points *= 1 << _SHIFT
        return np.rint(points).astype(np.int32)

    def fill(self, points: np.ndarray, gray: int = 255) -> None:
        """Fills one outline, int32 (corners, 2) from `points`."""
        cv2.fillPoly(self._canvas, [points], gray, cv2.LINE_8, _SHIFT)

    def polygons(self, x: np.ndarray, y: np.ndarray, gray: np.ndarray) -> None:
        """Fills closed outlines (n, corners), each with its gray (n,)."""
        if len(x):
            for outline, value in zip(self.points(x, y), gray.tolist(), strict=True):
                self.fill(outline, value)

    def polyline(self, x: np.ndarray, y: np.ndarray, width: float, gray: int = 255) -> None:
        """Draws a line of constant width, at least one subpixel wide."""
        pixels = max(1, int(width * self.unit))
        points = self.points(x, y)
        cv2.polylines(self._canvas, [points], False, gray, pixels, cv2.LINE_8, _SHIFT)

    def dot(self, x: float, y: float, radius: float, gray: int = 255, least: float = 0.0) -> None:
        """Fills a circle whose radius is at least `least` image pixels."""
        px, py = self.points(x, y).tolist()
        r = int(max(radius * self.unit, least * SUPERSAMPLE) * (1 << _SHIFT))
        cv2.circle(self._canvas, (px, py), r, gray, -1, cv2.LINE_8, _SHIFT)

    def boat(self, x: float, y: float, width: float, height: float, gray: int) -> None:
        """Fills the lower half of an ellipse, flat side up in the image whatever the tilt."""
        px, py = self.points(x, y).tolist()
        axes = tuple(int(v * self.unit * (1 << _SHIFT)) for v in (width, height))
        cv2.ellipse(self._canvas, (px, py), axes, 0, 0, 180, gray, -1, cv2.LINE_8, _SHIFT)

    def coverage(self, blur: float = 0.0) -> np.ndarray:
        """Returns float32 (S, S) in 0..1, blurred by a Gaussian of `blur` pixels."""
        size = (self.frame.size, self.frame.size)
        image = cv2.resize(self._canvas, size, interpolation=cv2.INTER_AREA)
        image = np.multiply(image, np.float32(1 / 255), dtype=np.float32)
        return cv2.GaussianBlur(image, (0, 0), blur) if blur else image


def sensor_noise(rng: np.random.Generator, size: int, sd: float) -> np.ndarray:
    """Draws nearly normal white noise: the sum of four bytes, many times cheaper than normals."""
    words = rng.integers(0, 2**64 - 1, -(-size * size // 2), np.uint64, endpoint=True)
    raw = words.view(np.int8)[: 4 * size * size].reshape(4, size, size)
    total = raw[0].astype(np.float32)
    for part in raw[1:]:
        total += part
    # A byte is uniform over 256 values: variance (256^2 - 1) / 12, mean -0.5.
    total += np.float32(2.0)
    total *= np.float32(sd / math.sqrt(4 * (256**2 - 1) / 12))
    return total


def blend(plane: np.ndarray, cover: np.ndarray, color: np.ndarray | float, room: np.ndarray):
    """Moves a plane towards a color where it is covered, in place.

    Args:
        plane: float32 (S, S), changed.
        cover: float32 (S, S), 0 keeps the plane, 1 replaces it.
        color: The new value, a number or (S, S).
        room: float32 (S, S) that is overwritten: fresh memory would cost more than the arithmetic.
    """
    np.subtract(color, plane, out=room)
    np.multiply(room, cover, out=room)
    plane += room
