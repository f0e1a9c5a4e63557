import cv2
import numpy as np
import pytest
from fake_trees.images import photograph
from tensorflow_datasets.image_classification import diabetic_retinopathy_detection as oracle

from medinit_jax.data.graham import eye_radius, subtract_local_mean


def disc(height, width, radius, value):
    image = np.zeros((height, width, 3), np.uint8)
    return cv2.circle(image, (width // 2, height // 2), radius, (value,) * 3, cv2.FILLED)


@pytest.mark.parametrize(("width", "height"), [(96, 64), (201, 200), (1500, 1000)])
def test_as_tfds_has_it(width, height):
    image = photograph("graham", width, height)["image"]
    scaled = oracle._scale_radius_size(image, "x", 300)
    expected = oracle._mask_and_crop_to_radius(
        oracle._subtract_local_average(scaled, 300), 300, 0.9, crop_to_radius=True
    )
    np.testing.assert_array_equal(subtract_local_mean(image, 300), expected.astype(np.uint8))


def test_the_radius_is_half_of_the_bright_part_of_the_middle_row():
    assert eye_radius(disc(200, 300, 80, 120)) == 80.5


def test_an_even_eye_becomes_gray_whatever_its_brightness():
    for value in (60, 200):
        result = subtract_local_mean(disc(500, 700, 200, value), 100)
        assert result.shape == (180, 180, 3)
        middle = result[60:120, 60:120]
        np.testing.assert_array_equal(middle, 128)
        # Beyond 0.9 of the radius everything is gray, and the rim of the eye with it.
        np.testing.assert_array_equal(result[:5, :5], 128)


def test_a_dark_picture_is_told(caplog):
    dark = np.zeros((60, 80, 3), np.uint8)
    assert eye_radius(dark) == 30 and "no eye" in caplog.text
    np.testing.assert_array_equal(subtract_local_mean(dark, 50), 128)
