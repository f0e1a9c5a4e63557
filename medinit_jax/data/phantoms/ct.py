"""Head CT phantom: drawn axial slices in Hounsfield units with five kinds of bleeding.

Coordinates run from -1 to 1, x to the right, y down; the forehead is up, image left is the
patient's right. Slices of one patient share skull, brain width and atrophy. Level and bleeding are
drawn for each slice; findings draw from their own stream, so that neither skull nor scanner
depends on them.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medinit_jax.data.phantoms.drawing import Frame, sensor_noise, smooth_noise, soft_step

# In the order of the RSNA challenge.
TYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
# Center and width in HU of the windows that make red, green and blue.
WINDOWS = {"brain": (40, 80), "subdural": (80, 200), "bone": (600, 2800)}
AIR = -1000
_PATIENT_STREAM, _SLICE_STREAM, _FINDING_STREAM, _SCANNER_STREAM = 0, 1, 2, 3
_STREAM = 8
_EPIDURAL, _PARENCHYMAL, _VENTRICULAR, _SUBARACHNOID, _SUBDURAL = range(5)
_TYPE_SHARES = (0.06, 0.27, 0.19, 0.24, 0.24)
_POSTERIOR_FOSSA, _VERTEX = -0.15, 0.45
_LEVELS, _VENTRICLE_LEVELS = (-0.5, 1.0), (-0.05, 0.35)
# Bleeding into the ventricles takes a slice with ventricles. As large a share of the slices without
# any bleeding are drawn there, so that the level does not tell whether there is any. It is a
# quarter by `_TYPE_SHARES`: whether the level is there then tells nothing (AUC 0.500 on 6,000
# slices), with a share of 15 % it would (AUC 0.535).
_FORCED_LEVEL_SHARE = 0.25
# Pixels at 256 px that a mask needs for its label.
_LEAST_PIXELS = 20


class _Patient(NamedTuple):
    """What the slices of a patient share, lengths in field units."""

    half_width: float
    half_height: float
    thickness: float
    wobble: float
    asymmetry: float
    atrophy: float
    ventricles: float
    bone: float


class _Head(NamedTuple):
    """Geometry of one slice.

    Attributes:
        x, y: Coordinates of the pixels.
        angle: Direction from the middle, in the head's own proportions.
        radius: 1 on the outer table of the skull.
        inner: Radius of the inner table.
        inside: 1 within the skull, 0 outside.
        level: Height of the slice, -0.5 at the skull base to 1 at the vertex.
        half_width: Half the head's width.
    """

    x: np.ndarray
    y: np.ndarray
    angle: np.ndarray
    radius: np.ndarray
    inner: float
    inside: np.ndarray
    level: float
    half_width: float


class _Fluid(NamedTuple):
    """Where cerebrospinal fluid is, 0 to 1."""

    sulci: np.ndarray
    fissure: np.ndarray
    ventricles: np.ndarray
    cistern: np.ndarray


def render(
    seed: int,
    eye: int = 0,
    size: int = 256,
    *,
    slice_number: int = 0,
    types: Sequence[str] | None = None,
) -> dict:
    """Draws one axial slice of a head.

    Args:
        seed: Patient number.
        eye: Unused; every phantom is called the same way.
        size: Side of the square image in pixels.
        slice_number: Which slice of the patient; slices share the skull and nothing else.
        types: Overrides the drawn kinds of bleeding, names from `TYPES`.

    Returns:
        A dict with `image` uint8 (size, size, 3), the windows brain, subdural and bone; `hu` int16
        (size, size); `labels`: 0 or 1 for each of `TYPES`, as its mask has 20 pixels (at 256 px) or
        not, and for `any`; `masks`: one uint8 (size, size) for each of `TYPES`; `level`; `eye` 0;
        `patient`.
    """
    shared = np.random.default_rng([seed, _STREAM, _PATIENT_STREAM])
    anatomy, finding, scanner = (
        np.random.default_rng([seed, _STREAM, stream, slice_number])
        for stream in (_SLICE_STREAM, _FINDING_STREAM, _SCANNER_STREAM)
    )
    kinds = _draw_types(finding)
    moved = finding.random() < _FORCED_LEVEL_SHARE
    if types is not None:
        kinds = tuple(TYPES.index(name) for name in types)
    anywhere, central = float(anatomy.uniform(*_LEVELS)), float(anatomy.uniform(*_VENTRICLE_LEVELS))
    level = central if _VENTRICULAR in kinds or (moved and not kinds) else anywhere

    patient = _draw_patient(shared)
    head = _draw_head(anatomy, patient, level, size)
    hu, fluid = _draw_slice(anatomy, patient, head)
    found = np.zeros((len(TYPES), size, size), bool)
    for kind in kinds:
        cover = _bleed(finding, head, fluid, hu, kind)
        density = float(finding.uniform(55, 80)) + smooth_noise(finding, 20, size, 4.0)
        _put(hu, 0.97 * cover, density)
        found[kind] = cover > 0.5
    values = _scan(scanner, head, hu)
    least = _LEAST_PIXELS * (size / 256) ** 2
    labels = {name: int(mask.sum() >= least) for name, mask in zip(TYPES, found, strict=True)}
    return {
        "image": windowed(values),
        "hu": values,
        "labels": {"any": max(labels.values()), **labels},
        "masks": dict(zip(TYPES, found.astype(np.uint8), strict=True)),
        "level": level,
        "eye": 0,
        "patient": f"ct-{seed}",
    }


def windowed(hu: np.ndarray) -> np.ndarray:
    """Returns uint8 (H, W, 3), the three `WINDOWS` of int16 (H, W) in HU."""
    # A table over all values is much cheaper than arithmetic on every pixel.
    return _WINDOW_TABLE[np.clip(hu, -1024, 3071) + 1024]


def _window_table() -> np.ndarray:
    values = np.arange(-1024, 3072, dtype=np.float32)[:, None]
    center, width = np.array(list(WINDOWS.values()), np.float32).T
    shares = np.clip((values - (center - width / 2)) / width, 0, 1)
    return np.rint(255 * shares).astype(np.uint8)


_WINDOW_TABLE = _window_table()


def _draw_types(rng: np.random.Generator) -> tuple[int, ...]:
    """Draws which kinds of bleeding there are: none in 60 %, else one or, in 30 %, two."""
    bleeds, two = rng.random() >= 0.60, rng.random() < 0.3
    kinds = rng.choice(5, size=2, replace=False, p=_TYPE_SHARES).tolist()
    return tuple(kinds[: 1 + two]) if bleeds else ()


def _draw_patient(rng: np.random.Generator) -> _Patient:
    return _Patient(
        half_width=float(rng.uniform(0.66, 0.74)),
        half_height=float(rng.uniform(0.80, 0.90)),
        thickness=float(rng.uniform(0.055, 0.09)),
        wobble=float(rng.uniform(0, 6)),
        asymmetry=float(rng.normal(0, 0.02)),
        atrophy=float(rng.uniform(0.4, 1.3)),
        ventricles=float(rng.uniform(0.8, 1.35)),
        bone=float(rng.normal(0, 60)),
    )


def _draw_head(rng: np.random.Generator, patient: _Patient, level: float, size: int) -> _Head:
    """Places the head in the image; slices near the vertex are smaller."""
    dx, dy = rng.uniform(-0.05, 0.05, 2).tolist()
    tilt = math.radians(float(rng.normal(0, 5)))
    x, y = np.broadcast_arrays(*Frame(size, size / 2, tilt, (dx, dy)).grid())
    shrink = 1.25 - 0.45 * level if level > 0.55 else 1.0
    half_width, half_height = patient.half_width * shrink, patient.half_height * shrink
    across, down = x * np.float32(1 / half_width), y * np.float32(1 / half_height)
    angle = np.arctan2(down, across)
    # The occiput (down) is wider than the forehead.
    outline = 1 + 0.012 * np.cos(2 * angle + patient.wobble)
    outline += 0.03 * np.sin(angle) + patient.asymmetry * np.cos(angle)
    radius = _length(across, down) / outline
    inner = 1 - patient.thickness
    inside = soft_step(inner - radius, _edge(size))
    return _Head(x, y, angle, radius, inner, inside, level, half_width)


def _edge(size: int) -> float:
    """Returns how soft edges are, in field units: about a pixel."""
    return 2.2 / size


def _put(hu: np.ndarray, cover: np.ndarray, value: np.ndarray | float) -> None:
    """Moves HU towards a value where it is covered, in place."""
    hu += cover * (value - hu)


def _ellipse(head: _Head, middle, radii, turn: float, softness: float) -> np.ndarray:
    """Returns the cover, 0 to 1, of an ellipse turned by `turn` radians."""
    dx, dy = head.x - np.float32(middle[0]), head.y - np.float32(middle[1])
    cos, sin = math.cos(turn), math.sin(turn)
    along = dx * np.float32(cos / radii[0]) + dy * np.float32(sin / radii[0])
    across = dy * np.float32(cos / radii[1]) - dx * np.float32(sin / radii[1])
    return soft_step(1 - _length(along, across), softness)


def _length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the distance from the origin, three times as fast as `np.hypot`."""
    return np.sqrt(x * x + y * y)


def _draw_slice(
    rng: np.random.Generator, patient: _Patient, head: _Head
) -> tuple[np.ndarray, _Fluid]:
    """Draws scalp, skull and brain; returns HU float32 (S, S) and where the fluid is."""
    size, edge = head.x.shape[0], _edge(head.x.shape[0])
    hu = np.full((size, size), AIR, np.float32)
    for outside, value in ((1.085, 20.0), (1.065, -60.0)):
        _put(hu, soft_step(outside - head.radius, edge), value)
    skull = soft_step(1 - head.radius, edge)
    _put(hu, skull, 1250 + patient.bone + smooth_noise(rng, 9, size, 250))
    middle, width = 1 - patient.thickness / 2, 0.2 * patient.thickness
    hu -= 450 * skull * np.exp(-(((head.radius - middle) / width) ** 2))

    gray = 0.5 + smooth_noise(rng, 10, size, 0.6) + 1.6 * (head.radius - 0.62)
    _put(hu, head.inside, 29 + 8 * np.clip(gray, 0, 1))
    fluid = _draw_fluid(rng, patient, head)
    surface = np.clip(fluid.sulci * patient.atrophy + 0.7 * fluid.fissure, 0, 1) * 0.85
    _put(hu, surface, 8.0)
    falx = np.exp(-((head.x / 0.006) ** 2)) * (np.abs(head.y) > 0.26)
    _put(hu, 0.6 * falx * head.inside, 45.0)
    _put(hu, fluid.ventricles, 7.0)
    calcified = rng.random() < 0.5
    densities = rng.uniform(120, 140, 2).tolist()
    if fluid.ventricles.any() and calcified:
        # Too dense and too small for blood: choroid plexus and pineal gland.
        for side in (-1, 1):
            place = (side * 0.15 * patient.ventricles, 0.27)
            _put(hu, _ellipse(head, place, (0.017, 0.017), 0, 0.2), densities[0])
        _put(hu, _ellipse(head, (0, 0.14), (0.015, 0.015), 0, 0.2), densities[1])
    if head.level < _POSTERIOR_FOSSA:
        for side in (-1, 1):
            petrous = _ellipse(head, (side * 0.33, 0.10), (0.20, 0.05), -side * 0.6, 0.12)
            _put(hu, petrous * head.inside, 900.0)
        _put(hu, _ellipse(head, (0, 0.28), (0.05, 0.03), 0, 0.2), 8.0)
        _put(hu, fluid.cistern, 8.0)
    drift = smooth_noise(rng, 3, size, 1.8)
    hu += np.clip(drift, -3, 3) * head.inside
    return hu, fluid


def _draw_fluid(rng: np.random.Generator, patient: _Patient, head: _Head) -> _Fluid:
    """Draws sulci, fissure, ventricles and, low in the head, the star-shaped cistern."""
    size = head.x.shape[0]
    # Sulci are the zero lines of a noise grid.
    sulci = np.clip(1 - np.abs(smooth_noise(rng, 17, size)) * 4, 0, 1)
    sulci *= np.clip((head.radius - head.inner * 0.76) / 0.09, 0, 1) * head.inside
    fissure = np.exp(-((head.x / (0.010 * patient.atrophy + 0.006)) ** 2)) * head.inside
    fissure *= np.clip(np.abs(head.y) * 2.2 - 0.35, 0, 1)
    ventricles, cistern = np.zeros_like(head.x), np.zeros_like(head.x)
    if _POSTERIOR_FOSSA < head.level < _VERTEX:
        wide = patient.ventricles
        for side in (-1, 1):
            horns = (
                ((side * 0.085 * wide, -0.18), (0.045 * wide, 0.17 * wide), side * 0.35),
                ((side * 0.16 * wide, 0.24), (0.040 * wide, 0.15 * wide), -side * 0.45),
            )
            for middle, radii, turn in horns:
                horn = _ellipse(head, middle, radii, turn, 0.12)
                ventricles = np.maximum(ventricles, horn)
        third = _ellipse(head, (0, 0.05), (0.016 * wide, 0.07), 0, 0.15)
        ventricles = np.maximum(ventricles, third)
    elif head.level <= _POSTERIOR_FOSSA:
        below = head.y + np.float32(0.12)
        star = 0.105 + 0.045 * np.cos(5 * np.arctan2(head.x, -below))
        cistern = soft_step(star - _length(head.x, below), 0.02) * head.inside
    return _Fluid(sulci, fissure, ventricles, cistern)


def _bleed(
    rng: np.random.Generator, head: _Head, fluid: _Fluid, hu: np.ndarray, kind: int
) -> np.ndarray:
    """Draws one kind of bleeding; returns its cover, 0 to 1 (edema is put into `hu`)."""
    side = 1 if rng.random() < 0.5 else -1
    toward = (0.0 if side > 0 else math.pi) + float(rng.uniform(-0.7, 0.7))
    away = (head.angle - (toward - math.pi)) % math.tau - math.pi
    if kind in (_EPIDURAL, _SUBDURAL):
        arc, depth = ((0.22, 0.42), (0.06, 0.18)), ((0.8, 1.35), (0.038, 0.09))
        half, deep = (float(rng.uniform(*span)) for span in (arc if kind == _EPIDURAL else depth))
        profile = np.clip(1 - (away / half) ** 2, 0, 1)
        if kind == _SUBDURAL:
            profile = np.sqrt(profile)
        cover = soft_step(head.radius - (head.inner - deep * profile), 0.012) * head.inside
        cover *= np.abs(away) < half
        # A crescent does not cross the midline; the falx holds it.
        return cover * (side * head.x > 0) if kind == _SUBDURAL else cover
    if kind == _PARENCHYMAL:
        return _blob(rng, head, fluid, hu, side)
    if kind == _VENTRICULAR:
        # The patient lies on the back: blood sinks to the occiput, which is down.
        level, share = float(rng.uniform(0.10, 0.30)), float(rng.uniform(0.85, 1.0))
        if rng.random() < 0.6:
            return fluid.ventricles * soft_step(head.y - level, 0.015)
        return fluid.ventricles * share * (side * head.x > 0)
    sector = np.exp(-((away / float(rng.uniform(0.6, 1.2))) ** 2))
    wide = np.clip(1.25 - np.abs(smooth_noise(rng, 15, head.x.shape[0])) * 3, 0, 1)
    wide *= np.clip((head.radius - head.inner * 0.70) / 0.10, 0, 1) * head.inside
    cover = np.maximum(wide, fluid.sulci) * 1.2 + 0.5 * fluid.fissure
    cover = np.clip(cover, 0, 1) * sector
    return np.maximum(cover, 0.95 * fluid.cistern) if rng.random() < 0.6 else cover


def _blob(rng, head: _Head, fluid: _Fluid, hu: np.ndarray, side: int) -> np.ndarray:
    """Draws a bleeding into the brain; puts its edema into `hu` and returns its cover."""
    radius, stretch = float(rng.uniform(0.05, 0.16)), float(rng.uniform(0.8, 1.4))
    x = side * float(rng.uniform(0.18, 0.40)) * head.half_width / 0.7
    y = float(rng.uniform(-0.40, 0.42))
    dx, dy = head.x - np.float32(x), head.y - np.float32(y)
    distance = _length(dx, dy / stretch) / radius
    distance += smooth_noise(rng, 9, head.x.shape[0], 0.22)
    edema = np.exp(-(np.maximum(distance - 1, 0) ** 2) / 0.10) * (distance < 2.2)
    _put(hu, 0.75 * edema * head.inside, 18.0)
    return soft_step(1 - distance, 0.08) * head.inside * (1 - fluid.ventricles)


def _scan(rng: np.random.Generator, head: _Head, hu: np.ndarray) -> np.ndarray:
    """Adds the scanner's noise, correlated between neighbors; returns int16 HU."""
    noise = sensor_noise(rng, hu.shape[0], 1.0)
    noise += np.roll(noise, 1, axis=0) + np.roll(noise, 1, axis=1)
    noise *= np.float32(float(rng.uniform(3, 7)) / math.sqrt(3))
    noise *= 0.4 + 0.6 * head.inside
    return np.clip(np.rint(hu + noise), -1024, 3071).astype(np.int16)
