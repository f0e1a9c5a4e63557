"""Lesions of diabetic retinopathy and their decoys, drawn on the fundus phantom."""

import math
from typing import NamedTuple

import numpy as np

from medinit_jax.data.phantoms.drawing import Frame, Layer, rough_outlines
from medinit_jax.data.phantoms.fundus_vessels import grow


class Lesions(NamedTuple):
    """How many lesions of each kind an eye has.

    Attributes:
        microaneurysms: Red dots.
        hemorrhages: Blots and flames.
        exudates: Clusters of hard exudates.
        cotton_wool: Soft pale spots.
        neovessels: Whether there is a tuft of new vessels (proliferative).
    """

    microaneurysms: int = 0
    hemorrhages: int = 0
    exudates: int = 0
    cotton_wool: int = 0
    neovessels: bool = False


class Region(NamedTuple):
    """Where lesions may lie, in field units.

    Attributes:
        disc: x and y of the optic disc.
        disc_radius: Vertical radius of the disc.
        fovea: x and y of the fovea.
        unit: Field units per standard unit (45 degrees of view).
        limit: Largest distance from the center of the field.
        side: +1 for a right eye, -1 for a left one.
    """

    disc: tuple[float, float]
    disc_radius: float
    fovea: tuple[float, float]
    unit: float
    limit: float
    side: int

    def allows(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Tells which points (n,) are inside the field and outside disc and foveola."""
        inside = np.hypot(x, y) < self.limit
        off_disc = np.hypot(x - self.disc[0], y - self.disc[1]) > 1.25 * self.disc_radius
        off_fovea = np.hypot(x - self.fovea[0], y - self.fovea[1]) > 0.035 * self.unit
        return inside & off_disc & off_fovea

    def places(
        self, rng: np.random.Generator, count: int, sd: float, around=(0.0, 0.0)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws exactly `count` allowed normal points, so that every counted lesion is seen.

        Returns:
            x (count,) and y (count,).
        """
        found = np.empty((2, 0))
        while found.shape[1] < count:
            drawn = rng.normal(0, sd, (2, max(8, 2 * count))) + np.reshape(around, (2, 1))
            found = np.concatenate([found, drawn[:, self.allows(*drawn)]], axis=1)
        return found[0, :count], found[1, :count]


class LesionLayers(NamedTuple):
    """What was drawn.

    Attributes:
        dots: Microaneurysms.
        dark: Hemorrhages.
        bright: Hard exudates.
        soft: Cotton-wool spots.
        exudate_points: x, y of every exudate.
        preretinal: Whether a pre-retinal hemorrhage was drawn.
    """

    dots: Layer
    dark: Layer
    bright: Layer
    soft: Layer
    exudate_points: list[tuple[float, float]]
    preretinal: bool


def draw_lesions(
    rng: np.random.Generator,
    frame: Frame,
    region: Region,
    lesions: Lesions,
    macular: bool,
    veins: Layer,
) -> LesionLayers:
    """Draws all lesions.

    Args:
        rng: Source of randomness.
        frame: Geometry of the image.
        region: Where lesions may lie.
        lesions: How many of each kind.
        macular: Whether exudates gather around the fovea rather than anywhere.
        veins: Layer that takes the new vessels.

    Returns:
        The layers and what they hold.
    """
    dots, dark, bright, soft = (Layer(frame) for _ in range(4))
    unit = region.unit
    count = lesions.microaneurysms
    if count:
        radius, gray = rng.uniform(0.009, 0.015, count) * unit, rng.integers(170, 255, count)
        for x, y, r, g in zip(*region.places(rng, count, 0.42), radius, gray, strict=True):
            dots.dot(float(x), float(y), float(r), int(g), least=0.95)
    if lesions.hemorrhages:
        _hemorrhages(rng, dark, region, lesions.hemorrhages)
    points: list[tuple[float, float]] = []
    for _ in range(lesions.exudates):
        points += _exudate_cluster(rng, bright, region, macular)
    count = lesions.cotton_wool
    if count:
        radii = (rng.uniform(0.03, 0.055, count) * unit, rng.uniform(0.02, 0.035, count) * unit)
        angle = rng.uniform(0, math.pi, count)
        outlines = rough_outlines(rng, region.places(rng, count, 0.40), radii, angle, 0.15)
        soft.polygons(*outlines, rng.integers(130, 210, count))
    preretinal = False
    if lesions.neovessels:
        _neovessels(rng, veins, region)
        preretinal = bool(rng.random() < 0.45)
        if preretinal:
            below = (region.fovea[0], region.fovea[1] + 0.25 * unit)
            x, y = (float(v[0]) for v in region.places(rng, 1, 0.35, below))
            width = float(rng.uniform(0.10, 0.22)) * unit
            dark.boat(x, y, width, 0.8 * width, 245)
    return LesionLayers(dots, dark, bright, soft, points, preretinal)


def _hemorrhages(rng: np.random.Generator, layer: Layer, region: Region, count: int) -> None:
    """Draws flames along the nerve fibers (radial from the disc) and blots."""
    x, y = region.places(rng, count, 0.50)
    flame = rng.random(count) < 0.4
    radial = np.arctan2(y - region.disc[1], x - region.disc[0])
    angle = np.where(flame, radial, rng.uniform(0, math.tau, count))
    blot = rng.uniform(0.016, 0.042, count)
    rx = np.where(flame, rng.uniform(0.035, 0.075, count), blot) * region.unit
    ry = np.where(flame, rng.uniform(0.008, 0.016, count), blot * rng.uniform(0.6, 1.0, count))
    roughness = np.where(flame, 0.25, 0.16)
    outlines = rough_outlines(rng, (x, y), (rx, ry * region.unit), angle, roughness)
    layer.polygons(*outlines, rng.integers(190, 255, count))


def _exudate_cluster(
    rng: np.random.Generator, layer: Layer, region: Region, macular: bool
) -> list[tuple[float, float]]:
    """Draws one cluster or ring of 8 to 29 exudates and returns those inside the region."""
    unit = region.unit
    around, sd = (region.fovea, 0.16 * unit) if macular else ((0.0, 0.0), 0.5)
    middle_x, middle_y = region.places(rng, 1, sd, around)
    count = int(rng.integers(8, 30))
    ring = rng.random() < 0.4
    spread = float(rng.uniform(0.06, 0.16)) * unit
    distance = rng.normal(1, 0.12, count) if ring else np.abs(rng.normal(0, 0.55, count))
    angle = rng.uniform(0, math.tau, count)
    x, y = (m + spread * distance * f(angle) for m, f in ((middle_x, np.cos), (middle_y, np.sin)))
    radius = rng.uniform(0.006, 0.016, count) * unit
    radii = (radius, radius * rng.uniform(0.6, 1.0, count))
    outlines = rough_outlines(rng, (x, y), radii, angle, 0.15, corners=9)
    gray = rng.integers(170, 255, count)
    seen = region.allows(x, y)
    layer.polygons(outlines[0][seen], outlines[1][seen], gray[seen])
    return list(zip(x[seen].tolist(), y[seen].tolist(), strict=True))


def _neovessels(rng: np.random.Generator, layer: Layer, region: Region) -> None:
    """Draws a tuft of curly new vessels on the disc or near an arcade."""
    unit = region.unit
    x, y = region.disc
    if rng.random() >= 0.55:
        x -= region.side * float(rng.uniform(0.2, 0.7)) * unit
        y += float(rng.choice((-1.0, 1.0)) * rng.uniform(0.45, 0.6)) * unit
    count = int(rng.integers(14, 26))
    start = (x + rng.normal(0, 0.02, count), y + rng.normal(0, 0.02, count))
    heading = rng.uniform(0, math.tau, count)
    length = rng.uniform(0.08, 0.26, count) * unit
    curl = rng.uniform(-3.5, 3.5, count)
    xs, ys, _ = grow(rng, start, heading, length, curl, 18, 2.2)
    for i in range(count):
        layer.polyline(xs[i], ys[i], 0.009 * unit, 230)


def drusen(rng: np.random.Generator, frame: Frame, region: Region) -> Layer:
    """Draws pale blurred spots around the fovea, a decoy for exudates."""
    layer = Layer(frame)
    places = region.places(rng, int(rng.integers(4, 18)), 0.16 * region.unit, region.fovea)
    for x, y in zip(*places, strict=True):
        layer.dot(float(x), float(y), float(rng.uniform(0.006, 0.014)) * region.unit, 150)
    return layer


def lens_dust(rng: np.random.Generator, frame: Frame, region: Region) -> Layer:
    """Draws soft gray spots, a decoy for hemorrhages."""
    layer = Layer(frame)
    for x, y in zip(*region.places(rng, int(rng.integers(1, 4)), 0.5), strict=True):
        layer.dot(float(x), float(y), float(rng.uniform(0.02, 0.05)), 110)
    return layer
