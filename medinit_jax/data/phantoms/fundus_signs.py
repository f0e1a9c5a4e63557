"""Eye diseases other than diabetic retinopathy and glaucoma, painted on the fundus phantom."""

import dataclasses
import math

import cv2
import numpy as np

from medinit_jax.data.phantoms.drawing import Frame, Layer, blend, rough_outlines, smooth_noise
from medinit_jax.data.phantoms.fundus_lesions import Region

# Streams of `default_rng([seed, stream])` for a right and a left eye.
SIGN_STREAMS = {1: 11, -1: 12}
# What hypertension does to the width of arteries relative to veins.
NARROW_ARTERIES = 0.5
CRESCENT = 0.8


@dataclasses.dataclass(frozen=True)
class Signs:
    """Which diseases an eye shows beside those of its labels.

    Attributes:
        cataract: Haze and blur over everything.
        macular_degeneration: Many soft drusen within 1.5 disc radii of the fovea.
        hypertension: Narrow arteries and flame hemorrhages.
        myopia: A tessellated fundus and a wide crescent beside the disc.
        laser: A grid of laser scars.
    """

    cataract: bool = False
    macular_degeneration: bool = False
    hypertension: bool = False
    myopia: bool = False
    laser: bool = False


def paint_signs(
    rng: np.random.Generator,
    signs: Signs,
    frame: Frame,
    region: Region,
    light: np.ndarray,
    planes: np.ndarray,
) -> None:
    """Paints all signs but narrow arteries and the crescent, in place.

    Args:
        rng: Source of randomness.
        signs: Which signs.
        frame: Geometry of the image.
        region: Where lesions may lie.
        light: float32 (S, S), illumination.
        planes: float32 (3, S, S) red, green, blue.
    """
    if signs.myopia:
        _tessellate(rng, planes)
    if signs.laser:
        _laser_scars(rng, frame, region, light, planes)
    if signs.macular_degeneration:
        _soft_drusen(rng, frame, region, planes)
    if signs.hypertension:
        _flames(rng, frame, region, light, planes)
    if signs.cataract:
        _cloud(rng, planes)


def _tessellate(rng: np.random.Generator, planes: np.ndarray) -> None:
    """Shows the choroid's vessels: pale ridges between dark meshes."""
    ridges = np.minimum(np.abs(smooth_noise(rng, 22, planes.shape[1])), np.float32(1.6))
    for plane, gain in zip(planes, (0.10, 0.16, 0.10), strict=True):
        plane *= 1 + np.float32(gain) * (1 - 2 * ridges)


def _laser_scars(rng, frame: Frame, region: Region, light: np.ndarray, planes: np.ndarray) -> None:
    """Paints pale scars with dark rims on a loose grid, away from the macula."""
    step = 0.15 * region.unit
    axis = np.arange(-1, 1 + step, step)
    x, y = (v.ravel() for v in np.meshgrid(axis, axis))
    x, y = (v + rng.normal(0, 0.12 * step, len(v)) for v in (x, y))
    from_fovea = np.hypot(x - region.fovea[0], y - region.fovea[1])
    kept = region.allows(x, y) & (from_fovea > 0.38 * region.unit) & (rng.random(len(x)) < 0.85)
    radius = rng.uniform(0.024, 0.036, len(x)) * region.unit
    rims, scars = Layer(frame), Layer(frame)
    turn = np.zeros(int(kept.sum()))
    for layer, scale in ((rims, 1.35), (scars, 1.0)):
        radii = (scale * radius[kept], scale * radius[kept])
        outlines = rough_outlines(rng, (x[kept], y[kept]), radii, turn, 0.08)
        layer.polygons(*outlines, rng.integers(170, 235, len(turn)))
    _paint(planes, rims, light, 0.45, (0.25, 0.12, 0.07))
    _paint(planes, scars, light, 0.75, (0.90, 0.72, 0.42))


def _soft_drusen(rng, frame: Frame, region: Region, planes: np.ndarray) -> None:
    """Paints 25 to 60 soft drusen within 1.5 disc radii of the fovea."""
    count = int(rng.integers(25, 61))
    distance = 1.5 * region.disc_radius * np.sqrt(rng.random(count))
    angle = rng.uniform(0, math.tau, count)
    layer = Layer(frame)
    for r, a in zip(distance.tolist(), angle.tolist(), strict=True):
        place = region.fovea[0] + r * math.cos(a), region.fovea[1] + r * math.sin(a)
        layer.dot(*place, float(rng.uniform(0.010, 0.024)) * region.unit, 220, least=0.95)
    spots = layer.coverage(max(0.5, 0.006 * frame.scale))
    for plane, tint in zip(planes, (0.22, 0.26, 0.10), strict=True):
        plane += np.float32(tint) * spots


def _flames(rng, frame: Frame, region: Region, light: np.ndarray, planes: np.ndarray) -> None:
    """Paints flame hemorrhages along the nerve fibers, around the disc."""
    count = int(rng.integers(4, 11))
    x, y = region.places(rng, count, 0.28 * region.unit, region.disc)
    angle = np.arctan2(y - region.disc[1], x - region.disc[0])
    radii = tuple(
        rng.uniform(low, high, count) * region.unit for low, high in ((0.04, 0.08), (0.008, 0.016))
    )
    layer = Layer(frame)
    outlines = rough_outlines(rng, (x, y), radii, angle, 0.25)  # pyright: ignore
    layer.polygons(*outlines, rng.integers(190, 255, count))
    _paint(planes, layer, light, 0.75, (0.38, 0.07, 0.05))


def _cloud(rng: np.random.Generator, planes: np.ndarray) -> None:
    """Blurs the planes and lays a yellowish haze over them, uneven as cataracts are."""
    size = planes.shape[1]
    haze = float(rng.uniform(0.25, 0.5)) * (1 + smooth_noise(rng, 4, size, 0.12))
    blur = float(rng.uniform(1.6, 3.0)) * size / 256
    for plane, color in zip(planes, (0.62, 0.47, 0.30), strict=True):
        plane[:] = cv2.GaussianBlur(plane, (0, 0), blur)
        plane += haze * (np.float32(color) - plane)


def _paint(planes, layer: Layer, light: np.ndarray, opacity: float, color) -> None:
    cover = layer.coverage(0.5) * np.float32(opacity)
    lit, room = np.clip(light, 0.4, 1.1), np.empty_like(light)
    for plane, value in zip(planes, color, strict=True):
        blend(plane, cover, lit * np.float32(value), room)
