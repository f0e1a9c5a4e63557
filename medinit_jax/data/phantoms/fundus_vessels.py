"""The retinal vessel tree of the fundus phantom: four arcades and two levels of branches."""

import math
from typing import NamedTuple

import numpy as np

from medinit_jax.data.phantoms.drawing import Layer

TRUNK_STEPS = 40


class Branches(NamedTuple):
    """Vessels of one level, in field units.

    Attributes:
        x: float32 (vessels, steps) along each vessel.
        y: float32 (vessels, steps).
        width: float32 (vessels, steps); 0 where the vessel has ended.
        heading: float32 (vessels, steps) direction in radians.
        vein: bool (vessels,).
    """

    x: np.ndarray
    y: np.ndarray
    width: np.ndarray
    heading: np.ndarray
    vein: np.ndarray


class Style(NamedTuple):
    """What the vessels of one eye have in common.

    Attributes:
        disc: x and y where the trunks leave the optic disc.
        fovea: x and y of the fovea.
        side: +1 for a right eye, -1 for a left one.
        unit: Field units per standard unit (45 degrees of view).
        width: Relative vessel width.
        tortuosity: Relative amplitude of the bends.
        artery_ratio: Width of an artery relative to its vein.
        beading: Whether the veins are beaded (severe retinopathy).
    """

    disc: tuple[float, float]
    fovea: tuple[float, float]
    side: int
    unit: float
    width: float
    tortuosity: float
    artery_ratio: float
    beading: bool


def wander(rng: np.random.Generator, rows: int, steps: int, sd: float) -> np.ndarray:
    """Draws `rows` smooth random curves through six normal knots; float32 (rows, steps)."""
    knots = rng.standard_normal((rows, 6), dtype=np.float32) * np.float32(sd)
    place = np.linspace(0, 5, steps, dtype=np.float32)
    left = np.minimum(place.astype(np.intp), 4)
    blend = place - left
    blend = blend * blend * (3 - 2 * blend)
    return knots[:, left] * (1 - blend) + knots[:, left + 1] * blend


def grow(
    rng: np.random.Generator,
    start: tuple[np.ndarray, np.ndarray],
    heading: np.ndarray,
    length: np.ndarray,
    curl: np.ndarray,
    steps: int,
    tortuosity: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grows curves from their starts, the heading drifting by `curl` plus smooth noise.

    Args:
        rng: Source of randomness.
        start: x (n,) and y (n,).
        heading: Starting direction (n,) in radians.
        length: Arc length (n,) in field units.
        curl: Total systematic turn (n,) in radians.
        steps: Points per curve.
        tortuosity: Relative amplitude of the noise in the heading.

    Returns:
        x, y and heading, float32 (n, steps).
    """
    turn = np.linspace(0, 1, steps, dtype=np.float32)[None]
    angle = heading[:, None] + curl[:, None] * turn
    angle = (angle + wander(rng, len(heading), steps, 0.22 * tortuosity)).astype(np.float32)
    step = (length / (steps - 1)).astype(np.float32)[:, None]
    x = np.empty_like(angle)
    y = np.empty_like(angle)
    x[:, 0], y[:, 0] = start
    x[:, 1:] = x[:, :1] + np.cumsum(np.cos(angle[:, :-1]) * step, axis=1)
    y[:, 1:] = y[:, :1] + np.cumsum(np.sin(angle[:, :-1]) * step, axis=1)
    return x, y, angle


def _trunks(rng: np.random.Generator, style: Style) -> Branches:
    """Draws vein and artery of the four arcades: temporal parabolas and nasal rays."""
    unit, side = style.unit, style.side
    (disc_x, disc_y), (fovea_x, _) = style.disc, style.fovea
    reach = abs(disc_x - fovea_x) + 1e-6
    t = np.linspace(0, 1, TRUNK_STEPS, dtype=np.float32)
    onset = np.minimum(1, 4 * t)
    # Vessels emerge from the disc thin and thicken within the first eighth of their course.
    profile = (1 - 0.60 * t) * (0.22 + 0.78 * np.minimum(1, 8 * t))
    xs, ys, widths, veins = [], [], [], []
    for up in (-1, 1):
        for vein in (True, False):
            gap = 0.05 * unit * (1 if vein else -1) * float(rng.uniform(0.6, 1.3))
            height = float(rng.normal(0.62, 0.07)) * unit + gap
            along = t * (1.75 * reach)
            closing = 1 - 0.16 * (along / reach) ** 2 * float(rng.uniform(0.5, 1.2))
            bend = wander(rng, 2, TRUNK_STEPS, 0.035 * unit * style.tortuosity) * onset
            root_x = float(rng.normal(0, 0.022)) * unit + (0.0 if vein else side * 0.018 * unit)
            root_y = -up * float(rng.uniform(0, 0.035)) * unit
            fade = np.exp(-6 * t)
            bow = 0.05 * unit * np.sin(np.pi * np.minimum(along / reach, 1))
            xs.append(disc_x - side * (along - bow) + bend[0] + root_x * fade)
            ys.append(
                disc_y + up * height * np.sqrt(along / reach) * closing + bend[1] + root_y * fade
            )
            caliber = 0.032 * (1.0 if vein else style.artery_ratio) * unit * style.width
            caliber *= float(rng.uniform(0.9, 1.1))
            widths.append(caliber * profile)
            angle, length = float(rng.uniform(0.55, 1.05)), float(rng.uniform(0.8, 1.2)) * unit
            bend = wander(rng, 2, TRUNK_STEPS, 0.03 * unit * style.tortuosity) * onset
            along = t * length
            sideways = along * math.cos(angle) * (0.55 + 0.45 * t)
            xs.append(disc_x + side * (0.02 * unit + sideways) + bend[0])
            rise = up * along * math.sin(angle) ** 0.8
            ys.append(disc_y + rise + 0.7 * gap * np.minimum(1, 3 * t) + bend[1])
            widths.append(0.72 * caliber * profile)
            veins += [vein, vein]
    x, y, width = (np.stack(rows).astype(np.float32) for rows in (xs, ys, widths))
    vein = np.array(veins)
    if style.beading:
        beads = 1 + 0.28 * np.sin(np.linspace(0, 60, TRUNK_STEPS)) * (t > 0.15)
        width = np.where(vein[:, None], width * beads, width).astype(np.float32)
    heading = np.arctan2(np.gradient(y, axis=1), np.gradient(x, axis=1))
    return Branches(x, y, width, heading, vein)


def _side_branches(
    rng: np.random.Generator,
    style: Style,
    parents: Branches,
    per_parent: int,
    steps: int,
    length: float,
    thinning: float,
    first: float,
) -> Branches:
    """Grows branches at stratified places along every parent, alternating sides."""
    count, parent_steps = parents.x.shape
    total = count * per_parent
    place = (np.arange(per_parent)[None] + rng.random((count, per_parent))) / per_parent
    place = (place * (0.98 - first) + first).ravel()
    column = np.minimum((place * (parent_steps - 1)).astype(np.intp), parent_steps - 1)
    row = np.repeat(np.arange(count), per_parent)
    sign = np.where((np.arange(total) + rng.integers(0, 2)) % 2 == 0, 1.0, -1.0)
    heading = parents.heading[row, column] + sign * rng.uniform(0.45, 1.15, total)
    lengths = length * style.unit * rng.uniform(0.45, 1.15, total)
    curl = -sign * rng.uniform(0.1, 1.0, total)
    x0, y0 = parents.x[row, column], parents.y[row, column]
    x, y, angle = grow(rng, (x0, y0), heading, lengths, curl, steps, style.tortuosity)
    to_fovea = np.hypot(x - style.fovea[0], y - style.fovea[1])
    alive = np.minimum.accumulate(to_fovea > 0.13 * style.unit, axis=1)
    base = np.maximum(parents.width[row, column] * thinning, 0.0065 * style.unit)
    taper = 1 - 0.65 * np.linspace(0, 1, steps, dtype=np.float32)
    width = np.where(alive, base[:, None] * taper, 0).astype(np.float32)
    visible = (x0**2 + y0**2 < 1.15) & (parents.width[row, column] > 0)
    off_disc = np.hypot(x0 - style.disc[0], y0 - style.disc[1]) > 0.10 * style.unit
    keep = visible & off_disc
    return Branches(x[keep], y[keep], width[keep], angle[keep], parents.vein[row][keep])


def vessel_tree(rng: np.random.Generator, style: Style) -> list[Branches]:
    """Draws the tree: 16 trunks, 7 branches on each, 4 twigs on each of those."""
    trunks = _trunks(rng, style)
    branches = _side_branches(rng, style, trunks, 7, 26, 0.62, 0.60, 0.12)
    twigs = _side_branches(rng, style, branches, 4, 16, 0.30, 0.62, 0.10)
    return [trunks, branches, twigs]


def draw_tree(tree: list[Branches], arteries: Layer, veins: Layer, reflex: Layer) -> None:
    """Draws every vessel as a tapering ribbon, and the light reflex on wide arteries.

    Args:
        tree: The levels that `vessel_tree` returned.
        arteries: Takes the arteries.
        veins: Takes the veins.
        reflex: Takes the bright central line of arteries wider than four subpixels.
    """
    for level in tree:
        # Filling includes the outline, which makes a ribbon wider by half a subpixel and more. A
        # ribbon narrower than a subpixel is drawn one subpixel wide, only fainter.
        half = np.maximum(level.width - 0.8 / arteries.unit, 0) * 0.5
        dx, dy = -np.sin(level.heading) * half, np.cos(level.heading) * half
        left = veins.points(level.x + dx, level.y + dy)
        right = arteries.points(level.x - dx, level.y - dy)
        ribbons = np.concatenate([left, right[:, ::-1]], axis=1)
        steps, length = level.x.shape[1], (level.width > 0).sum(axis=1)
        thickness = level.width.sum(axis=1) / np.maximum(length, 1) * arteries.unit
        gray = np.clip(60 + 150 * thickness, 0, 255).tolist()
        for i, (vein, n) in enumerate(zip(level.vein.tolist(), length.tolist(), strict=True)):
            if n < 3:
                continue
            ribbon = ribbons[i]
            if n < steps:
                ribbon = np.concatenate([ribbon[:n], ribbon[-n:]])
            (veins if vein else arteries).fill(ribbon, int(gray[i]))
    trunks = tree[0]
    bright = trunks.width * reflex.unit
    for i in np.flatnonzero(~trunks.vein):
        wide = np.flatnonzero(bright[i] > 4.5)
        wide = wide[wide > 2]
        if len(wide) > 1:
            span = slice(wide[0], wide[-1] + 1)
            shine = float(trunks.width[i, span].mean())
            gray = int(min(255, 40 * shine * reflex.unit))
            reflex.polyline(trunks.x[i, span], trunks.y[i, span], 0.28 * shine, gray)
