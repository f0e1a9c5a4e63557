"""The same recipes of host augmentation three times: ours, with albumentations, with Pillow.

Every side takes encoded images and returns uint8 arrays of `SIZE` pixels, as its users write it.
"""

from __future__ import annotations

import io
import math
import os
import random
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from medinit_jax.data.decode import decode
from medinit_jax.data.paired import PairAugmentation, augment_pair
from medinit_jax.data.views import RECIPES, make_views

SIZE = 224
RECIPE, PAIR = RECIPES["simclr_orig"], PairAugmentation()
VIEWS = RECIPE.views[0]
Pair = tuple[np.ndarray, np.ndarray]


class Side(NamedTuple):
    """One way to do both recipes.

    Attributes:
        views: (JPEG, number) -> uint8 (2, SIZE, SIZE, 3): two SimCLR views.
        pair: (JPEG, PNG, number) -> image uint8 (SIZE, SIZE, 3) and mask uint8 (SIZE, SIZE).
    """

    views: Callable[[bytes, int], np.ndarray]
    pair: Callable[[bytes, bytes, int], Pair]


def ours() -> Side:
    """Returns this package's side; the JPEG with a mask is decoded at a half."""

    def views(jpeg: bytes, number: int) -> np.ndarray:
        return make_views(decode(jpeg), RECIPE, np.random.default_rng(number), SIZE)[0]

    def pair(jpeg: bytes, png: bytes, number: int) -> Pair:
        image = decode(jpeg, at_least=SIZE, headroom=1)
        return augment_pair(image, _mask(png), PAIR, SIZE, np.random.default_rng(number))

    return Side(views, pair)


def ours_full() -> Side:
    """Returns this package's side with every JPEG decoded at its full size."""

    def pair(jpeg: bytes, png: bytes, number: int) -> Pair:
        return augment_pair(decode(jpeg), _mask(png), PAIR, SIZE, np.random.default_rng(number))

    return Side(ours().views, pair)


def _mask(png: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED))


def albumentations() -> Side:
    """Returns the side of albumentations; OpenCV decodes, which is its faster way."""
    # It would ask the network for newer versions of itself.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A

    def around_one(strength: float) -> tuple[float, float]:
        return max(0.0, 1 - strength), 1 + strength

    view = A.Compose(
        [
            A.RandomResizedCrop((SIZE, SIZE), scale=VIEWS.area, ratio=VIEWS.aspect),
            A.HorizontalFlip(p=VIEWS.mirror),
            A.ColorJitter(
                around_one(VIEWS.brightness),
                around_one(VIEWS.contrast),
                around_one(VIEWS.saturation),
                (-VIEWS.hue, VIEWS.hue),
                p=VIEWS.jitter,
            ),
            A.ToGray(p=VIEWS.gray),
            # A limit of 0 lets the kernel fit sigma.
            A.GaussianBlur(blur_limit=0, sigma_limit=VIEWS.sigma, p=VIEWS.blur),
        ]
    )
    geometry = PAIR.geometry
    moved = A.Compose(
        [
            # First, so that everything after it works on fewer pixels.
            A.Resize(SIZE, SIZE),
            A.Affine(scale=geometry.zoom, rotate=(-geometry.rotate, geometry.rotate), p=1.0),
            A.HorizontalFlip(p=geometry.mirror),
            A.VerticalFlip(p=geometry.flip),
            A.RandomBrightnessContrast(PAIR.brightness, PAIR.contrast, p=1.0),
        ]
    )

    def read(jpeg: bytes) -> np.ndarray:
        return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB))

    def views(jpeg: bytes, number: int) -> np.ndarray:
        image = read(jpeg)
        return np.stack([view(image=image)["image"] for _ in range(2)])

    def pair(jpeg: bytes, png: bytes, number: int) -> Pair:
        result = moved(image=read(jpeg), mask=_mask(png))
        return result["image"], result["mask"]

    return Side(views, pair)


def pillow() -> Side:
    """Returns the side of Pillow alone."""
    changes: list[Callable[[Image.Image, random.Random], Image.Image]] = [
        lambda image, rng: ImageEnhance.Brightness(image).enhance(_factor(rng, VIEWS.brightness)),
        lambda image, rng: ImageEnhance.Contrast(image).enhance(_factor(rng, VIEWS.contrast)),
        lambda image, rng: ImageEnhance.Color(image).enhance(_factor(rng, VIEWS.saturation)),
        lambda image, rng: _hue(image, rng.uniform(-VIEWS.hue, VIEWS.hue)),
    ]

    def view(image: Image.Image, rng: random.Random) -> np.ndarray:
        image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, _crop(image.size, rng))
        if rng.random() < VIEWS.mirror:
            image = ImageOps.mirror(image)
        if rng.random() < VIEWS.jitter:
            for change in rng.sample(changes, len(changes)):
                image = change(image, rng)
        if rng.random() < VIEWS.gray:
            image = image.convert("L").convert("RGB")
        if rng.random() < VIEWS.blur:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*VIEWS.sigma)))
        return np.array(image)

    def views(jpeg: bytes, number: int) -> np.ndarray:
        rng = random.Random(number)
        with Image.open(io.BytesIO(jpeg)) as image:
            return np.stack([view(image, rng) for _ in range(2)])

    def pair(jpeg: bytes, png: bytes, number: int) -> Pair:
        rng = random.Random(number)
        with Image.open(io.BytesIO(jpeg)) as image, Image.open(io.BytesIO(png)) as mask:
            # The decoder may give a half: that is Pillow's own way to smaller JPEGs.
            image.draft("RGB", (SIZE, SIZE))
            affine = _affine(rng)
            arguments = (SIZE, SIZE), Image.Transform.AFFINE
            moved = image.transform(*arguments, _at(affine, image.size), Image.Resampling.BILINEAR)
            moved = ImageEnhance.Brightness(moved).enhance(_factor(rng, PAIR.brightness))
            moved = ImageEnhance.Contrast(moved).enhance(_factor(rng, PAIR.contrast))
            label = mask.transform(*arguments, _at(affine, mask.size), Image.Resampling.NEAREST)
        return np.array(moved), np.array(label)

    return Side(views, pair)


def _factor(rng: random.Random, strength: float) -> float:
    return rng.uniform(max(0.0, 1 - strength), 1 + strength)


def _hue(image: Image.Image, turn: float) -> Image.Image:
    hue, *others = image.convert("HSV").split()
    hue = hue.point([(level + round(256 * turn)) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, *others)).convert("RGB")


def _crop(size: tuple[int, int], rng: random.Random) -> tuple[int, int, int, int]:
    """Draws left, top, right and bottom."""
    width, height = size
    while True:
        area = width * height * rng.uniform(*VIEWS.area)
        aspect = math.exp(rng.uniform(*(math.log(a) for a in VIEWS.aspect)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h


def _affine(rng: random.Random) -> np.ndarray:
    """Draws a (2, 3) map from output to input, about the center, in halves of a side."""
    geometry = PAIR.geometry
    angle = math.radians(rng.uniform(-geometry.rotate, geometry.rotate))
    zoom = rng.uniform(*geometry.zoom)
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    x = -1 if rng.random() < geometry.mirror else 1
    y = -1 if rng.random() < geometry.flip else 1
    return np.array([[x * cos, x * sin, 0.0], [-y * sin, y * cos, 0.0]])


def _at(affine: np.ndarray, size: tuple[int, int]) -> tuple[float, ...]:
    """Returns the six numbers that Pillow wants for an input of this size."""
    half = np.array(size) / 2
    linear = affine[:, :2] * half[:, None] / (SIZE / 2)
    shift = half - linear @ np.full(2, SIZE / 2)
    return tuple(np.c_[linear, shift].ravel().tolist())


SIDES = {
    "ours": ours,
    "ours_full": ours_full,
    "albumentations": albumentations,
    "pillow": pillow,
}
