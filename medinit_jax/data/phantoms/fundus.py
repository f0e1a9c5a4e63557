"""Fundus phantom: drawn color photographs of the retina with labels and masks.

One patient shares pigment, camera, vessel style and disease between both eyes. Coordinates are
field units: the radius of the field of view is 1, x to the right, y down. The optic disc of a
right eye lies on the right of the image, and the fovea lies below the disc: together with
gravity in pre-retinal hemorrhages these are the only cues to what is up.

Randomness is `default_rng([seed, stream])` with one stream for the patient and separate streams
per eye for labels, anatomy, lesions and optics, so that a label never moves a nuisance.
"""

import dataclasses
import math
from typing import Literal

import cv2
import numpy as np

from medinit_jax.data.phantoms.drawing import (
    Frame,
    Layer,
    blend,
    enlarge,
    sensor_noise,
    smooth_noise,
    soft_step,
)
from medinit_jax.data.phantoms.fundus_lesions import (
    LesionLayers,
    Region,
    draw_lesions,
    drusen,
    lens_dust,
)
from medinit_jax.data.phantoms.fundus_patient import (
    EYE_STREAMS,
    RIGHT,
    EyeLabels,
    Patient,
    draw_labels,
    draw_patient,
)
from medinit_jax.data.phantoms.fundus_signs import CRESCENT, SIGN_STREAMS, Signs, paint_signs
from medinit_jax.data.phantoms.fundus_vessels import Style, draw_tree, vessel_tree


@dataclasses.dataclass(frozen=True)
class _Eye:
    """Geometry of one eye, in field units."""

    side: int
    unit: float
    disc: tuple[float, float]
    fovea: tuple[float, float]
    disc_radius: float
    disc_aspect: float


def _draw_eye(rng: np.random.Generator, patient: Patient, eye: int, hard: bool) -> _Eye:
    unit = 45.0 / patient.field_degrees
    low, high = patient.centering or (0.05, 1.0 if hard else 0.62)
    fraction = float(rng.uniform(low, high))
    distance = 0.69 * unit * float(rng.uniform(0.94, 1.06))
    height = float(rng.uniform(-0.05, 0.05))
    low, high = (0.01, 0.05) if hard else (0.035, 0.075)
    fovea_drop, disc_rise = (rng.uniform(low, high, 2) * unit).tolist()
    return _Eye(
        side=eye,
        unit=unit,
        disc=(eye * (1 - fraction) * distance, height - disc_rise),
        fovea=(-eye * fraction * distance, height + fovea_drop),
        disc_radius=0.125 * unit * float(rng.uniform(0.88, 1.15)),
        disc_aspect=float(rng.uniform(0.86, 0.98)),
    )


def render(
    seed: int,
    eye: int = RIGHT,
    size: int = 256,
    *,
    patient: Patient | None = None,
    labels: EyeLabels | None = None,
    signs: Signs | None = None,
    upright: Literal["normal", "hard"] = "normal",
) -> dict:
    """Draws one fundus photograph.

    Args:
        seed: Patient number.
        eye: +1 for the right eye, -1 for the left.
        size: Side of the square image in pixels.
        patient: Overrides the drawn patient.
        labels: Overrides the drawn labels; anatomy and nuisances stay the same.
        signs: Other diseases that the eye shows; narrow arteries are the patient's.
        upright: "hard" weakens the cues to what is up: head tilt N(0, 6 degrees), a fovea only
            0.02 to 0.10 below the disc, and fields that may be centered on the disc.

    Returns:
        A dict with `image` uint8 (size, size, 3); `labels`: grade, glaucoma, vcdr, messidor
        (0-3), dme (0-2) and the lesion counts; `masks`: vessels, disc_cup (0, 1 disc, 2 cup) and
        fov as uint8 (size, size), lesions uint8 (size, size, 4) for microaneurysm, hemorrhage,
        exudate, cotton wool; `fovea`: x, y in pixels; `eye`; `patient`.
    """
    patient = patient or draw_patient(seed)
    labels = labels or draw_labels(patient, seed, eye)
    anatomy, lesion, optics = (np.random.default_rng([seed, s]) for s in EYE_STREAMS[eye][1:])
    hard = upright == "hard"
    geometry = _draw_eye(anatomy, patient, eye, hard)
    tilt = math.radians(float(anatomy.normal(0, 6.0))) if hard else 0.0
    frame = Frame(size, size / 2 * patient.zoom, tilt)
    field = _field_of_view(frame, patient)
    light, planes = _background(anatomy, patient, geometry, frame)
    crescent = CRESCENT if signs is not None and signs.myopia else None
    disc_cup = _disc_and_cup(anatomy, patient, labels, geometry, frame, light, planes, crescent)

    arteries, veins, reflex = Layer(frame), Layer(frame), Layer(frame)
    disc_nasal = (geometry.disc[0] + eye * 0.15 * geometry.disc_radius, geometry.disc[1])
    style = Style(
        disc=disc_nasal,
        fovea=geometry.fovea,
        side=eye,
        unit=geometry.unit,
        width=patient.vessel_width,
        tortuosity=patient.tortuosity,
        artery_ratio=patient.artery_ratio,
        beading=labels.grade >= 3,
    )
    draw_tree(vessel_tree(anatomy, style), arteries, veins, reflex)
    region = Region(
        disc=geometry.disc,
        disc_radius=geometry.disc_radius,
        fovea=geometry.fovea,
        unit=geometry.unit,
        limit=0.84 if patient.flat else 0.93,
        side=eye,
    )
    drawn = draw_lesions(lesion, frame, region, labels.lesions, patient.macular, veins)
    vessels = _paint_vessels(planes, arteries, veins, reflex)
    lesion_masks = _paint_lesions(planes, drawn, light, frame)
    if signs is not None:
        signs_rng = np.random.default_rng([seed, SIGN_STREAMS[eye]])
        paint_signs(signs_rng, signs, frame, region, light, planes)
    image = _photograph(optics, patient, frame, region, planes, field)
    inside = field > 0.5
    return {
        "image": image,
        "labels": _label_dict(labels, drawn, geometry),
        "masks": {
            "vessels": ((vessels > 0.45) & inside).astype(np.uint8),
            "disc_cup": disc_cup * inside,
            "lesions": lesion_masks,
            "fov": inside.astype(np.uint8),
        },
        "fovea": tuple(float(v) for v in frame.pixels(*geometry.fovea)),
        "eye": eye,
        "patient": f"fundus-{seed}",
    }


def _field_of_view(frame: Frame, patient: Patient) -> np.ndarray:
    """Returns the antialiased field of the camera, which a head tilt does not turn."""
    x, y = dataclasses.replace(frame, tilt=0.0).grid()
    field = x * x + y * y
    np.sqrt(field, out=field)
    np.subtract(1, field, out=field)
    field *= np.float32(frame.scale)
    field += np.float32(0.5)
    np.clip(field, 0, 1, out=field)
    if patient.flat:
        field *= np.abs(y) < 0.86
    return field


def _background(rng, patient, geometry, frame) -> tuple[np.ndarray, np.ndarray]:
    """Draws illumination, choroid and macula; returns the light (S, S) and planes (3, S, S)."""
    x, y = frame.grid()
    size = frame.size
    pale = 1 - patient.pigment
    tilt_x, tilt_y = (0.10 * rng.standard_normal(2)).astype(np.float32)
    light = smooth_noise(rng, 4, size, 0.035)
    room = x * x + y * y
    room *= np.float32(-0.30)
    light += room
    light += 1 + tilt_x * x
    light += tilt_y * y
    grain = rng.standard_normal((34, 34), dtype=np.float32) * np.float32(0.020)
    texture = enlarge(grain + smooth_noise(rng, 11, 34, 0.028), size)
    ridges = smooth_noise(rng, 22, size)
    np.abs(ridges, out=ridges)
    np.minimum(ridges, np.float32(1.6), out=ridges)
    np.subtract(1, ridges, out=ridges)
    ridges *= np.float32(0.05 * pale)
    texture += ridges
    macula = np.zeros((size, size), np.float32)
    for width, depth in ((0.17, 0.26), (0.045, 0.17)):
        # A Gaussian is a product of one in x and one in y: two rows instead of an image to exp.
        across, down = (
            np.exp(-0.5 * ((axis - np.float32(middle)) / np.float32(width * geometry.unit)) ** 2)
            for axis, middle in zip((x, y), geometry.fovea, strict=True)
        )
        np.multiply(across * np.float32(depth), down, out=room)
        macula += room
    base = (
        (0.80 - 0.20 * patient.pigment) * (1 + patient.cast[0]),
        (0.40 - 0.14 * patient.pigment) * (1 + patient.cast[1]),
        (0.17 - 0.07 * patient.pigment) * (1 + patient.cast[2]),
    )
    planes = np.empty((3, size, size), np.float32)
    gains = zip(planes, base, (1.0, 1.5, 1.8), (0.62, 1.05, 0.9), strict=True)
    for plane, color, texture_gain, macula_gain in gains:
        np.multiply(texture, np.float32(texture_gain), out=plane)
        plane += light
        np.multiply(macula, np.float32(macula_gain), out=room)
        plane -= room
        plane *= np.float32(color)
    return light, planes


def _disc_and_cup(
    rng, patient, labels, geometry, frame, light, planes, crescent_strength: float | None
) -> np.ndarray:
    """Paints optic disc, cup, crescent and halo; returns the mask uint8 (S, S)."""
    radius, aspect, side = geometry.disc_radius, geometry.disc_aspect, geometry.side
    px, py = (int(v) for v in frame.pixels(*geometry.disc))
    margin = int(radius * 2.6 * frame.scale) + 4
    window = tuple(
        slice(max(0, min(frame.size - 1, p - margin)), max(1, p + margin)) for p in (py, px)
    )
    dx, dy = (
        np.broadcast_to(axis, light.shape)[window] - np.float32(middle)
        for axis, middle in zip(frame.grid(), geometry.disc, strict=True)
    )
    angle = np.arctan2(dy, dx)
    phases = rng.uniform(0, 6, 2).tolist()
    wobble = 1 + 0.025 * np.sin(2 * angle + phases[0]) + 0.018 * np.sin(3 * angle + phases[1])
    distance = np.sqrt((dx / aspect) ** 2 + dy * dy) / wobble
    softness = max(0.008, 0.55 / frame.scale)
    disc = soft_step(radius - distance, softness)

    # The cup sits temporal and slightly up, so that the inferior rim is the thickest.
    ratio = labels.vcdr
    cup_x, cup_y = -side * 0.10 * radius * (1 - ratio), -0.06 * radius * (1 - ratio)
    inferior, depth = rng.random() < 0.7, float(rng.uniform(0, 0.16))
    notch = np.float32(1.0)
    if labels.glaucoma:
        notch_angle = math.atan2(0.8 if inferior else -0.8, -side * 0.5)
        away = np.arctan2(np.sin(angle - notch_angle), np.cos(angle - notch_angle))
        notch = 1 + depth * np.exp(-((away / 0.45) ** 2))
    from_cup = np.sqrt(((dx - cup_x) / (aspect * 0.96)) ** 2 + (dy - cup_y) ** 2)
    from_cup /= wobble * notch
    cup = soft_step(radius * ratio - from_cup, softness * float(rng.uniform(0.9, 1.6))) * disc

    crescent = np.exp(-(((distance - 1.12 * radius) / (0.10 * radius)) ** 2))
    usual = float(rng.uniform(0, 0.5))
    strength = usual if crescent_strength is None else crescent_strength
    crescent *= np.clip(-side * dx / radius, 0, 1) * strength
    halo = 0.10 * np.exp(-np.maximum(distance - radius, 0) / (0.5 * radius))
    brightness, contrast = float(rng.uniform(0.90, 1.08)), float(rng.uniform(0.75, 1.0))
    holes = 1 + np.float32(0.05) * smooth_noise(rng, 12, frame.size)[window]
    lit = np.clip(light[window], 0.72, 1.12)
    colors = zip((1.0, 0.65, 0.33), (1.10, 0.96, 0.70), strict=True)
    for plane, cast, (rim, pit) in zip(planes, patient.cast, colors, strict=True):
        rim *= (1 + cast) * brightness * (1 - 0.12 * patient.pigment)
        pit *= (1 + cast) * brightness
        patch = plane[window] * (1 + halo + 0.35 * crescent)
        patch += 0.96 * disc * (rim * lit * holes - patch)
        plane[window] = patch + contrast * cup * (pit * lit - patch)
    mask = np.zeros((frame.size, frame.size), np.uint8)
    mask[window] = (disc > 0.5).astype(np.uint8) + (cup > 0.5)
    return mask


def _paint_vessels(planes, arteries: Layer, veins: Layer, reflex: Layer) -> np.ndarray:
    """Darkens the planes under the vessels; returns the coverage of both kinds."""
    artery, vein, shine = arteries.coverage(), veins.coverage(), reflex.coverage()
    both = np.maximum(artery, vein)
    room = artery * np.float32(-0.4)
    room += 1
    vein *= room
    absorb = zip(planes, (0.20, 0.42, 0.34), (0.34, 0.60, 0.48), (0.10, 0.09, 0.05), strict=True)
    for plane, by_artery, by_vein, gain in absorb:
        for cover, strength in ((artery, by_artery), (vein, by_vein)):
            np.multiply(cover, np.float32(-strength), out=room)
            room += 1
            plane *= room
        np.multiply(shine, np.float32(gain), out=room)
        plane += room
    return both


def _paint_lesions(planes, drawn: LesionLayers, light: np.ndarray, frame: Frame) -> np.ndarray:
    """Blends the lesions in; returns their masks uint8 (S, S, 4)."""
    masks = np.zeros((frame.size, frame.size, 4), np.uint8)
    blurs = (0.4, 0.6, 0.35, max(0.8, 0.012 * frame.scale))
    # Opacity and color per plane; microaneurysms only absorb, cotton wool is self-luminous.
    opacity = ((0.30, 0.58, 0.50), (0.62, 0.85, 0.80), (0.85,) * 3, (0.62,) * 3)
    color = ((0.0,) * 3, (0.38, 0.07, 0.05), (0.98, 0.86, 0.42), (0.93, 0.82, 0.62))
    layers = (drawn.dots, drawn.dark, drawn.bright, drawn.soft)
    room, shade = np.empty_like(light), np.empty_like(light)
    # Painting order: exudates lie in front of cotton wool.
    for kind in (0, 1, 3, 2):
        if not layers[kind].used:
            continue
        cover = layers[kind].coverage(blurs[kind])
        masks[..., kind] = cover > 0.3
        lit = np.clip(light, 0.4, 1.1) if kind in (1, 2) else np.ones_like(light)
        scaled = np.empty_like(cover)
        for plane, alpha, value in zip(planes, opacity[kind], color[kind], strict=True):
            np.multiply(lit, np.float32(value), out=shade)
            np.multiply(cover, np.float32(alpha), out=scaled)
            blend(plane, scaled, shade, room)
    return masks


def _photograph(rng, patient, frame, region, planes, field) -> np.ndarray:
    """Adds optics and camera, which depend on no label; returns uint8 (S, S, 3)."""
    size = frame.size
    if rng.random() < 0.35:
        x, y = dataclasses.replace(frame, tilt=0.0).grid()
        angle, strength = float(rng.uniform(0, math.tau)), float(rng.uniform(0.1, 0.45))
        middle = (0.28 * math.cos(angle), 0.28 * math.sin(angle))
        flare = (x - np.float32(middle[0])) ** 2 + (y - np.float32(middle[1])) ** 2
        np.sqrt(flare, out=flare)
        flare -= np.float32(0.98)
        flare *= np.float32(1 / 0.3)
        np.clip(flare, 0, 1, out=flare)
        for plane, tint in zip(planes, (0.75, 0.55, 0.40), strict=True):
            plane += np.float32(tint * strength) * flare
    if rng.random() < 0.2:
        shade = lens_dust(rng, frame, region).coverage(0.015 * frame.scale)
        planes *= 1 - np.float32(0.35) * shade
    if rng.random() < 0.25:
        spots = drusen(rng, frame, region).coverage(0.7)
        for plane, tint in zip(planes, (0.10, 0.13, 0.04), strict=True):
            plane += np.float32(tint) * spots
    gray = planes[0] * np.float32(0.5)
    room = planes[1] * np.float32(0.35)
    gray += room
    np.multiply(planes[2], np.float32(0.15), out=room)
    gray += room
    gray *= np.float32(1 - patient.saturation)
    gain, gamma = float(rng.uniform(0.82, 1.14)), float(rng.uniform(0.88, 1.15))
    noise = sensor_noise(rng, size, 255 * patient.noise * float(rng.uniform(0.004, 0.014)))
    image = np.empty((size, size, 3), np.uint8)
    for c, plane in enumerate(planes):
        plane *= np.float32(patient.saturation)
        plane += gray
        np.clip(plane, 0, np.float32(1.2), out=plane)
        cv2.pow(plane, gamma, plane)
        plane *= np.float32(255 * gain**gamma)
        plane += noise
        plane *= field
        image[..., c] = np.clip(plane, 0, 255, out=plane)
    defocus = float(rng.choice((0.0, 0.0, 0.5, 0.8))) * size / 256
    return cv2.GaussianBlur(image, (0, 0), defocus) if defocus else image


def _label_dict(labels: EyeLabels, drawn: LesionLayers, geometry: _Eye) -> dict:
    """Returns all labels; Messidor grade and macular edema follow from what was drawn."""
    lesions = labels.lesions
    dots, bleeds = lesions.microaneurysms, lesions.hemorrhages + int(drawn.preretinal)
    if dots >= 15 or bleeds >= 5 or lesions.neovessels:
        messidor = 3
    elif dots > 5 or bleeds:
        messidor = 2
    else:
        messidor = 1 if dots else 0
    nearest = min((math.dist(p, geometry.fovea) for p in drawn.exudate_points), default=None)
    dme = 0 if nearest is None else 2 if nearest <= 2 * geometry.disc_radius else 1
    return {
        "grade": labels.grade,
        "any_dr": int(labels.grade > 0),
        "glaucoma": int(labels.glaucoma),
        "vcdr": labels.vcdr,
        "messidor": messidor,
        "dme": dme,
        "exudates_drawn": len(drawn.exudate_points),
        "preretinal": int(drawn.preretinal),
        **{name: int(value) for name, value in lesions._asdict().items()},
    }
