import colorsys

import cv2
import numpy as np
import pytest
from oracles import swcl

from medinit_jax.data import color, pillow_color
from medinit_jax.data.phantoms import fundus

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def pictures():
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    return [noise, fundus.render(1, 1, 64)["image"]]


def cut(values):
    return np.clip(values, 0, 255)


def brightness(x, factor):
    return cut(x * factor)


def contrast(x, factor):
    mean = (x @ LUMA).mean()
    return cut(mean + factor * (x - mean))


def saturation(x, factor):
    gray = (x @ LUMA)[..., None]
    return cut(gray + factor * (x - gray))


def hue(x, turn):
    out = np.empty(x.shape)
    for place in np.ndindex(*x.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(x[place] / 255))
        out[place] = colorsys.hsv_to_rgb((h + turn) % 1, s, v)
    return out * 255


def blur(x, sigma, reach=11):
    weights = np.exp(-((np.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    weights /= weights.sum()
    for axis in (0, 1):
        pad = [(reach, reach) if a == axis else (0, 0) for a in range(3)]
        padded = np.pad(x.astype(float), pad, mode="reflect")
        x = sum(
            w * np.take(padded, np.arange(x.shape[axis]) + i, axis) for i, w in enumerate(weights)
        )
    return x


def solarize(x, threshold):
    return np.where(x / 255 >= threshold, 255 - x.astype(float), x)


@pytest.mark.parametrize(
    ("reference", "amounts", "most"),
    [
        (brightness, (0.2, 0.9, 1.8), 1),
        (contrast, (0.2, 0.9, 1.8), 1),
        (saturation, (0.0, 0.9, 1.8), 1),
        # 256 levels of hue: half a level is 0.7 degrees, 3 levels of the strongest color.
        (hue, (-0.2, 0.03, 0.2), 7),
        (blur, (0.1, 0.37, 0.5, 0.7, 1.24, 2.0), 0.51),
        (solarize, (0.0, 0.3, 0.5, 1.0), 0),
    ],
)
def test_changes_follow_their_formula(reference, amounts, most, pictures):
    for picture in pictures:
        for amount in amounts:
            changed = color.CHANGES[reference.__name__](picture, amount)
            assert changed.dtype == np.uint8 and changed.shape == picture.shape
            difference = np.abs(changed - reference(picture, amount))
            assert difference.max() <= most and difference.mean() < 0.5


@pytest.mark.parametrize("name", ("brightness", "contrast", "saturation"))
def test_a_factor_of_one_changes_nothing(name, pictures):
    for picture in pictures:
        np.testing.assert_array_equal(color.CHANGES[name](picture, 1.0), picture)


def test_colors_by_hand():
    pixels = np.array([[[200, 100, 50], [10, 20, 30]]], np.uint8)
    assert color.brightness(pixels, 1.5).tolist() == [[[255, 150, 75], [15, 30, 45]]]
    # Gray of the first is 124.2, of the second 18.15.
    assert color.saturation(pixels, 0.0).tolist() == [[[124] * 3, [18] * 3]]
    assert color.contrast(pixels, 0.0).tolist() == [[[71] * 3] * 2]
    red = np.full((1, 1, 3), (255, 0, 0), np.uint8)
    for turn, expected in ((1 / 3, (0, 255, 0)), (-1 / 3, (0, 0, 255)), (0.5, (0, 255, 255))):
        assert np.abs(color.hue(red, turn).astype(int) - expected).max() <= 3


def test_gray_has_no_hue(pictures):
    gray = color.saturation(pictures[0], 0.0)
    np.testing.assert_array_equal(color.hue(gray, 0.2), gray)


def test_blur_keeps_the_mean_and_takes_gray_images():
    plane = cv2.resize(np.eye(4, dtype=np.uint8) * 200, (32, 32))
    assert abs(color.blur(plane, 1.5).mean() - plane.mean()) < 1


@pytest.fixture(scope="module")
def held():
    return swcl()


@pytest.mark.parametrize("sigma", ["0.1", "0.7", "2.0"])
def test_blur_is_the_authors(held, sigma):
    """Theirs has 23 taps and mirrored borders, on values in 0..1."""
    image = np.ascontiguousarray(held["aug_im"].transpose(1, 2, 0))
    found = color.blur(image, float(sigma))
    np.testing.assert_allclose(found, held[f"aug_blur23_s{sigma}"].transpose(1, 2, 0), atol=3e-5)


def test_solarization_is_the_authors(held):
    image = held["aug_im"].transpose(1, 2, 0)
    found = color.solarize(np.rint(image * 255).astype(np.uint8), 0.5) / 255
    expected = held["aug_solar05"].transpose(1, 2, 0)
    # Levels round to one side of the middle or the other.
    clear = np.abs(image - 0.5) > 0.5 / 255
    assert clear.mean() > 0.98
    np.testing.assert_allclose(found[clear], expected[clear], atol=0.5001 / 255)


PILLOWS = [
    ("bright1.3", "brightness", 1.3, 1, 0.5),
    ("contrast0.7", "contrast", 0.7, 1, 0.61),
    ("sat1.4", "saturation", 1.4, 1, 0.5),
    ("hue0.1", "hue", 0.1, 16, 1.0),
    ("hue-0.07", "hue", -0.07, 16, 1.0),
]


@pytest.mark.parametrize(("name", "change", "amount", "most", "mean"), PILLOWS)
def test_changes_are_near_pillows(held, name, change, amount, most, mean):
    """Pillow cuts where OpenCV rounds, and turns hue by 25 or 17 of 256 levels."""
    found = color.CHANGES[change](held["pil_in"], amount)
    difference = np.abs(found - held[f"pil_{name}"].astype(float))
    assert difference.max() <= most and difference.mean() < mean


@pytest.mark.parametrize(("name", "change", "amount", "most", "mean"), PILLOWS)
def test_pillows_changes_are_the_authors_to_the_level(held, name, change, amount, most, mean):
    del most, mean
    found = pillow_color.CHANGES[change](held["pil_in"], amount)
    np.testing.assert_array_equal(found, held[f"pil_{name}"])


def test_pillows_gray_is_the_authors(held):
    found = pillow_color.saturation(held["pil_in"], 0.0)
    np.testing.assert_array_equal(found, np.repeat(held["pil_gray"][..., None], 3, -1))


@pytest.mark.parametrize(
    ("change", "amounts", "most"),
    [
        ("brightness", (0.0, 0.9, 1.8), 1),
        ("contrast", (0.0, 0.9, 1.8), 1.8),
        ("saturation", (0.0, 0.9, 1.8), 1.8),
    ],
)
def test_pillows_changes_follow_their_formula(change, amounts, most, pictures):
    """They cut values that the formula leaves, and grays that it starts from are whole levels."""
    for picture in pictures:
        for amount in amounts:
            found = pillow_color.CHANGES[change](picture, amount)
            assert np.abs(found - globals()[change](picture, amount)).max() <= most


def test_pillows_hue_by_hand():
    """Hue is added in 256 levels and read as 255 a circle, so that turning back misses by one."""
    red = np.full((1, 1, 3), (255, 0, 0), np.uint8)
    # Levels 85, 256 - 85 and 127: 2, 4 + 6 / 255 and 3 - 3 / 255 sixths of the circle.
    for turn, expected in ((1 / 3, (0, 255, 0)), (-1 / 3, (6, 0, 255)), (0.5, (0, 255, 252))):
        assert pillow_color.hue(red, turn).tolist() == [[list(expected)]]
    # Less than a level turns nothing.
    np.testing.assert_array_equal(pillow_color.hue(red, 0.0039), red)


def test_gray_is_pillows(held):
    found = color.saturation(held["pil_in"], 0.0)
    assert np.abs(found - held["pil_gray"][..., None].astype(float)).max() <= 1
