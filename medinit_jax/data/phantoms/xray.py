"""Chest X-ray phantom: drawn frontal radiographs with opacities, boxes and decoys.

Hazes are the main decoy: smooth shadows as large and as bright as opacities, in every class, that
only lack their ragged texture. Without them a thumbnail of 8 x 8 pixels tells opacities as well as
a small network does.

Coordinates run from -1 to 1, x to the right, y down; image left is the patient's right. Bone is
bright (MONOCHROME2). Findings draw from their own stream, so that neither body nor camera depends
on the class except through the view: bed-side (AP) pictures are commoner in ill patients, and AP
brings a wider heart and tubes, as in life.
"""

import math
from typing import Literal, NamedTuple

import cv2
import numpy as np

from medinit_jax.data.phantoms.drawing import (
    Frame,
    Layer,
    sensor_noise,
    smooth_noise,
    soft_step,
)

UNKNOWN_EYE = 0
Finding = Literal["normal", "not_normal", "opacity"]
CLASSES: tuple[Finding, ...] = ("normal", "not_normal", "opacity")
_BODY_STREAM, _FINDING_STREAM, _CAMERA_STREAM = (7, 0), (7, 1), (7, 2)
_RIGHT_LUNG, _LEFT_LUNG = -1, 1


class _Chest(NamedTuple):
    """Geometry shared by the parts of one chest."""

    frame: Frame
    x: np.ndarray
    y: np.ndarray
    body: np.ndarray
    lungs: dict[int, np.ndarray]
    width: float
    inflation: float

    @property
    def lung(self) -> np.ndarray:
        return self.lungs[_RIGHT_LUNG] + self.lungs[_LEFT_LUNG]


def render(seed: int, eye: int = UNKNOWN_EYE, size: int = 256, *, finding: Finding | None = None):
    """Draws one chest radiograph.

    Args:
        seed: Patient number.
        eye: Unused; every phantom is called the same way.
        size: Side of the square image in pixels.
        finding: Overrides the drawn class: "normal", "not_normal" (another disease) or "opacity".

    Returns:
        A dict with `image` uint8 (size, size, 3), three equal channels; `labels`: opacity (0, 1),
        class3 (0 to 2, as `CLASSES`) and view ("AP" or "PA"); `boxes`: x, y, width, height in
        pixels of every opacity; `masks`: lungs uint8 (size, size); `eye` 0; `patient`.
    """
    body_rng = np.random.default_rng([seed, *_BODY_STREAM])
    finding_rng = np.random.default_rng([seed, *_FINDING_STREAM])
    camera_rng = np.random.default_rng([seed, *_CAMERA_STREAM])
    drawn = _draw_kind(finding_rng)
    kind = finding or drawn
    count = _draw_count(finding_rng)
    anteroposterior = bool(finding_rng.random() < (0.6 if kind == "opacity" else 0.45))
    enlarged = bool(finding_rng.random() < 0.4) and kind == "not_normal"

    chest = _draw_chest(body_rng, size)
    image = _soft_tissue(body_rng, chest)
    _heart_and_spine(body_rng, chest, image, anteroposterior, enlarged)
    _bones_and_hila(body_rng, chest, image)
    boxes = []
    if kind == "opacity":
        boxes = _opacities(finding_rng, chest, image, count)
    elif kind == "not_normal" and not enlarged:
        _other_disease(finding_rng, chest, image)
    gray = _photograph(camera_rng, chest, image, anteroposterior)
    return {
        "image": cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB),
        "labels": {
            "opacity": int(kind == "opacity"),
            "class3": CLASSES.index(kind),
            "view": "AP" if anteroposterior else "PA",
        },
        "boxes": boxes,
        "masks": {"lungs": (chest.lung > 0.5).astype(np.uint8)},
        "eye": UNKNOWN_EYE,
        "patient": f"xray-{seed}",
    }


def draw_finding(seed: int) -> tuple[Finding, int]:
    """Returns a patient's class and number of opacities, as `render` draws them, quickly."""
    rng = np.random.default_rng([seed, *_FINDING_STREAM])
    kind = _draw_kind(rng)
    return kind, _draw_count(rng) if kind == "opacity" else 0


def _draw_kind(rng: np.random.Generator) -> Finding:
    return CLASSES[int(rng.choice(3, p=(0.33, 0.44, 0.23)))]


def _draw_count(rng: np.random.Generator) -> int:
    return int(rng.choice((1, 2, 3, 4, 5), p=(0.38, 0.30, 0.17, 0.10, 0.05)))


def _draw_chest(rng: np.random.Generator, size: int) -> _Chest:
    """Places the body and both lungs."""
    zoom = float(rng.uniform(0.94, 1.12))
    dx, dy = (float(v) / zoom for v in rng.uniform(-0.06, 0.06, 2))
    tilt = math.radians(float(rng.normal(0, 2.3)))
    frame = Frame(size, size / 2 / zoom, tilt, (dx, dy))
    x, y = frame.grid()
    width, inflation = float(rng.uniform(0.92, 1.06)), float(rng.uniform(0.88, 1.05))
    away = np.abs(x)
    shoulder = 0.45 * np.maximum(away - 0.34, 0)
    neck = 0.25 * np.exp(-((x / 0.25) ** 2))
    body = soft_step(1.02 - away - 0.10 * np.clip(-y - 0.3, 0, 1), 0.05)
    body *= soft_step(y + 1.02 - shoulder + neck, 0.04)
    top = -0.74
    lungs = {}
    for side in (_RIGHT_LUNG, _LEFT_LUNG):
        # The right dome stands higher; the heart notches the left lung.
        base = 0.60 * inflation + (0.05 if side == _LEFT_LUNG else 0.0)
        out = side * x
        depth = np.clip((y - top) / (base - top), 0, 1)
        wall = 0.80 * width * np.sin(np.clip(1.25 * depth + 0.14, 0, 1.35) * (math.pi / 2)) ** 0.62
        if side == _LEFT_LUNG:
            notch = 0.16 * np.exp(-(((y - 0.30) / 0.26) ** 2))
        else:
            notch = 0.05 * np.exp(-(((y - 0.28) / 0.25) ** 2))
        dome = base - 0.17 * np.exp(-(((out - 0.42) / 0.26) ** 2))
        dome += 0.20 * np.clip(out - 0.5, 0, 1)
        lung = soft_step(wall - out, 0.022) * soft_step(out - 0.14 - 0.05 * depth - notch, 0.025)
        lung *= soft_step(dome - y, 0.02)
        lungs[side] = lung * soft_step(y - top + 0.12 * (out - 0.3) ** 2, 0.03)
    return _Chest(frame, x, y, body.astype(np.float32), lungs, width, inflation)


def _soft_tissue(rng: np.random.Generator, chest: _Chest) -> np.ndarray:
    """Draws the body with its lungs, uneven lung density and breast shadows."""
    image = 0.05 + (0.46 - float(rng.uniform(0.22, 0.34)) * chest.lung) * chest.body
    if rng.random() < 0.45:
        for side in (_RIGHT_LUNG, _LEFT_LUNG):
            distance = np.hypot((chest.x - side * 0.45) / 0.33, (chest.y - 0.42) / 0.27)
            shadow = soft_step(1 - distance, 0.06) * chest.body
            image += float(rng.uniform(0.04, 0.11)) * shadow
    size = chest.frame.size
    image += chest.lung * (smooth_noise(rng, 3, size, 0.035) + smooth_noise(rng, 6, size, 0.025))
    image += _hazes(rng, chest)
    return image.astype(np.float32)


def _hazes(rng: np.random.Generator, chest: _Chest) -> np.ndarray:
    """Draws up to five smooth shadows, placed and sized as opacities are, in most chests."""
    some, count = rng.random() < 0.8, int(rng.integers(1, 6))
    total = np.zeros_like(chest.lung)
    for _ in range(count if some else 0):
        side = int(rng.choice((_RIGHT_LUNG, _LEFT_LUNG)))
        x0, y0 = side * float(rng.uniform(0.26, 0.56)), float(rng.uniform(-0.25, 0.48))
        rx, ry = float(rng.uniform(0.10, 0.24)), float(rng.uniform(0.12, 0.30))
        square = ((chest.x - x0) / rx) ** 2 + ((chest.y - y0) / ry) ** 2
        np.maximum(total, np.exp(-1.1 * square) * chest.lungs[side], out=total)
    return float(rng.uniform(0.06, 0.20)) * total


def _heart_and_spine(rng, chest: _Chest, image: np.ndarray, bedside: bool, enlarged: bool):
    """Adds spine, mediastinum, heart and abdomen in place."""
    x, y = chest.x, chest.y
    image += 0.10 * np.exp(-((x / 0.10) ** 2)) * chest.body * (1 + 0.12 * np.sin(34 * y))
    image += 0.09 * np.exp(-((x / 0.17) ** 2)) * soft_step(y + 0.75, 0.1) * chest.body
    normal, large = float(rng.uniform(0.40, 0.48)), float(rng.uniform(0.58, 0.68))
    ratio = large if enlarged else normal + 0.05 * bedside
    half = 0.80 * ratio
    across = (x - 0.12 - 0.22 * (ratio - 0.4)) / half
    down = (y - 0.30) / (0.95 * half)
    heart = soft_step(1 - np.sqrt(across**2 + down**2 + 0.5 * across * down), 0.05)
    image += heart * (0.06 + 0.24 * chest.lung)
    image += 0.12 * soft_step(y - 0.62, 0.05) * chest.body


def _bones_and_hila(rng: np.random.Generator, chest: _Chest, image: np.ndarray) -> None:
    """Adds hilar vessels, ribs and clavicles in place."""
    vessels, bones = Layer(chest.frame), Layer(chest.frame)
    t9 = np.linspace(0, 1, 9, dtype=np.float32)
    t = np.linspace(0, 1, 22, dtype=np.float32)
    for side in (_RIGHT_LUNG, _LEFT_LUNG):
        start, bend = rng.uniform(-1.3, 1.45, 16), rng.normal(0, 0.35, 16)
        length = rng.uniform(0.2, 0.5, 16)
        angle = start[:, None] + bend[:, None] * t9
        vx = side * (0.20 + length[:, None] * t9 * np.cos(angle))
        vy = 0.02 + length[:, None] * t9 * np.sin(angle)
        # Three pieces of falling width and density stand for the taper.
        for i in range(16):
            for first, gray, width in ((0, 135, 0.021), (3, 100, 0.014), (5, 80, 0.008)):
                part = slice(first, first + 4)
                vessels.polyline(vx[i, part], vy[i, part], width, gray)
        for rib in range(9):
            top = -0.70 + 0.165 * rib * chest.inflation
            reach = min(0.80, 0.40 + 0.085 * rib) * chest.width
            rx = side * (0.10 + (reach - 0.10) * np.sin(t * (math.pi / 2 * 1.08)))
            ry = top - 0.10 * np.sin(2.0 * t) + 0.26 * t**2.2
            bones.polyline(rx, ry, 0.040, 120)
            if rib > 1:
                rx = side * (reach - (reach - 0.26) * t)
                bones.polyline(rx, top + 0.13 + 0.18 * t**1.4, 0.036, 62)
        clavicle = -0.70 - 0.10 * t + 0.02 * side * np.sin(5 * t)
        bones.polyline(side * (0.08 + 0.66 * t), clavicle, 0.05, 190)
    image += 0.16 * vessels.coverage(1.1) * chest.lung
    image += 0.17 * bones.coverage(0.8) * chest.body * (0.35 + 0.65 * chest.lung)


def _opacities(
    rng: np.random.Generator, chest: _Chest, image: np.ndarray, count: int
) -> list[tuple[float, float, float, float]]:
    """Adds ragged opacities in place and returns their boxes."""
    size = chest.frame.size
    total = np.zeros((size, size), np.float32)
    boxes: list[tuple[float, float, float, float]] = []
    while len(boxes) < count:
        side = int(rng.choice((_RIGHT_LUNG, _LEFT_LUNG)))
        x0, y0 = side * float(rng.uniform(0.26, 0.56)), float(rng.uniform(-0.25, 0.48))
        rx, ry = float(rng.uniform(0.10, 0.24)), float(rng.uniform(0.12, 0.30))
        blob = np.exp(-1.1 * (((chest.x - x0) / rx) ** 2 + ((chest.y - y0) / ry) ** 2))
        # Air and fluid side by side: patches with edges, which hazes have not.
        patches = soft_step(smooth_noise(rng, 22, size) + 0.2, 0.15)
        blob *= 0.1 + 1.3 * patches
        blob = np.clip(blob, 0, 1.1) * chest.lungs[side]
        rows, columns = np.nonzero(blob > 0.33)
        # Forty pixels at 256 px; smaller ones would be boxes around nothing.
        if len(rows) < 40 * (size / 256) ** 2:
            continue
        left, right = np.percentile(columns, (1, 99)).tolist()
        top, bottom = np.percentile(rows, (1, 99)).tolist()
        boxes.append((left, top, right - left + 1, bottom - top + 1))
        np.maximum(total, blob, out=total)
    image += float(rng.uniform(0.08, 0.20)) * total
    return boxes


def _other_disease(rng: np.random.Generator, chest: _Chest, image: np.ndarray) -> None:
    """Adds nodules, a pleural effusion or a pneumothorax edge in place."""
    side = int(rng.choice((_RIGHT_LUNG, _LEFT_LUNG)))
    kind = int(rng.integers(3))
    if kind == 0:
        for _ in range(int(rng.integers(1, 4))):
            side = int(rng.choice((_RIGHT_LUNG, _LEFT_LUNG)))
            x0, y0 = side * float(rng.uniform(0.25, 0.58)), float(rng.uniform(-0.4, 0.35))
            distance = np.hypot(chest.x - x0, chest.y - y0) / float(rng.uniform(0.025, 0.06))
            image += 0.16 * soft_step(1 - distance, 0.15) * chest.lung
    elif kind == 1:
        level = float(rng.uniform(0.22, 0.42))
        meniscus = chest.y - level + 0.28 * np.clip(side * chest.x - 0.3, 0, 1)
        image += 0.22 * chest.lungs[side] * soft_step(meniscus, 0.04)
    else:
        edge = side * chest.x - float(rng.uniform(0.50, 0.60))
        image -= 0.07 * chest.lungs[side] * soft_step(edge, 0.012)


def _photograph(rng, chest: _Chest, image: np.ndarray, bedside: bool) -> np.ndarray:
    """Adds devices, scatter, noise, contrast and side marker; returns uint8 (S, S)."""
    size = chest.frame.size
    tubes = rng.random() < 0.5
    count, ends = int(rng.integers(1, 4)), rng.uniform(-0.8, 0.8, (3, 2)).tolist()
    if bedside and tubes:
        layer = Layer(chest.frame)
        t = np.linspace(0, 1, 14, dtype=np.float32)
        for a, b in ends[:count]:
            layer.polyline(a + (b - a) * t + 0.1 * np.sin(5 * t + a), 1.9 * t - 1, 0.008, 150)
        image = image + np.float32(0.13) * layer.coverage()
    image = image + smooth_noise(rng, 5, size, 0.018)
    image += smooth_noise(rng, 40, size, 0.010) * chest.body
    image += sensor_noise(rng, size, float(rng.uniform(0.008, 0.02)))
    stride = max(1, size // 64)
    low, high = np.percentile(image[::stride, ::stride], (1, 99.5)).tolist()
    level = np.clip((image - low) * np.float32(1000 / (high - low)), 0, 1000).astype(np.int16)
    gamma = float(rng.uniform(0.8, 1.2))
    table = (255 * np.linspace(0, 1, 1001) ** gamma).astype(np.uint8)
    gray = table[level]
    if rng.random() < 0.3:
        # The marker stands on the patient's left.
        place, scale = (int(0.90 * size), int(0.09 * size)), 0.35 * size / 256
        cv2.putText(gray, "L", place, cv2.FONT_HERSHEY_SIMPLEX, scale, 250, 1, cv2.LINE_AA)
    return gray
