"""Stitching against the reference's output, and its laws."""

import json

import jax
import numpy as np
import pytest
from oracles import swcl

from medinit_jax.downstream import windows


def convolution(kernel, bias):
    def run(x):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + bias

    return jax.jit(run)


def test_where_windows_begin():
    assert windows.starts(565, 384) == [0, 181]
    assert windows.starts(960, 384) == [0, 320, 576]
    assert windows.starts(384, 384) == [0]
    assert windows.starts(768, 384) == [0, 384]


def test_starts_equal_the_references():
    for name, expected in json.loads(str(swcl()["sw_starts"])).items():
        size, window = map(int, name.split("/"))
        assert windows.starts(size, window) == expected


@pytest.mark.parametrize("size", [7, 8, 9, 15, 16, 17, 23, 31, 64])
def test_windows_cover_every_pixel(size):
    found = np.zeros(size, int)
    for first in windows.starts(size, 7):
        assert 0 <= first <= size - 7
        found[first : first + 7] += 1
    assert found.min() >= 1


@pytest.mark.parametrize("batch", [1, 4, 7, 64])
def test_logits_equal_the_references(batch):
    held = swcl()
    run = convolution(held["sw_w"].transpose(2, 3, 1, 0), held["sw_b"])
    images = held["sw_in"].transpose(0, 2, 3, 1)
    found = np.stack(list(windows.predict_images(run, images, 32, batch)))
    np.testing.assert_allclose(found, held["sw_out"].transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def test_images_of_all_sizes_come_in_order():
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(h, w, 1)).astype(np.float32) for h, w in ((9, 20), (4, 6), (8, 8))]
    found = list(windows.predict_images(lambda x: x, images, 8, 3))
    for image, logits in zip(images, found, strict=True):
        assert logits.shape == image.shape
        # Where windows overlap the same value is added up a whole number of times.
        times = logits / image
        np.testing.assert_allclose(times, np.rint(times), rtol=1e-5)
        assert times.min() >= 1 - 1e-5
    np.testing.assert_array_equal(found[1], images[1])


def test_the_last_batch_is_filled_up():
    shapes = []

    def run(x):
        shapes.append(x.shape)
        return x

    list(windows.predict_images(run, [np.ones((8, 12, 1), np.float32)] * 2, 8, 3))
    assert shapes == [(3, 8, 8, 1)] * 2
