"""Maps on the device against those of OpenCV, and laws."""

import jax.numpy as jnp
import numpy as np
from ramps import centers, key, ramps

from medinit_jax.data import augment
from medinit_jax.hyper.pretexts.warp import boxes, colored, random_affine, random_boxes, warp


def noise(count=4, size=16):
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype(np.float32)


def test_maps_are_those_of_the_host():
    maps = np.asarray(random_affine(key(), 4, 0.2, 20.0, 0.5))
    own = warp(jnp.asarray(noise()), jnp.asarray(maps), 16)
    # OpenCV rounds places to 1/32 of a pixel; neighbors differ by about 1.
    for found, image, matrix in zip(np.asarray(own), noise(), maps, strict=True):
        expected = augment.warp(image, matrix.astype(np.float64), 16)
        np.testing.assert_allclose(found, expected, atol=0.2)
        assert np.abs(found - expected).mean() < 0.02


def test_draws_are_those_of_the_host():
    """Law: a flip, a rotation and a shift, composed in that order."""
    maps = np.asarray(random_affine(key(), 200, 0.2, 10.0, 0.5), np.float64)
    mirrored = np.linalg.det(maps[:, :, :2]) < 0
    assert 60 < mirrored.sum() < 140
    for matrix, flip in zip(maps, mirrored, strict=True):
        straight = matrix[:, :2] * np.array([[-1.0 if flip else 1.0], [1.0]])
        np.testing.assert_allclose(straight @ straight.T, np.eye(2), atol=1e-6)
        shift = -np.linalg.inv(matrix[:, :2]) @ matrix[:, 2]
        assert (np.abs(shift) <= 0.4 + 1e-6).all()
    angles = np.degrees(np.arctan2(-maps[:, 1, 0], maps[:, 1, 1]))
    assert 8 < angles.std() < 12


def test_nothing_and_whole_pixels_are_exact():
    same = boxes(jnp.zeros(4), jnp.zeros(4), jnp.ones(4))
    np.testing.assert_allclose(warp(jnp.asarray(noise()), same, 16), noise(), atol=1e-6)
    # A box of half the side whose corner is pixel (4, 2).
    cut = boxes(jnp.full(4, -0.25), jnp.zeros(4), jnp.full(4, 0.5))
    np.testing.assert_allclose(
        warp(jnp.asarray(noise()), cut, 8), noise()[:, 4:12, 2:10], atol=1e-6
    )


def test_boxes_lie_inside_and_have_their_area():
    maps = random_boxes(key(), 100, (0.25, 0.5), mirror=0.5)
    views = np.asarray(warp(ramps(100), maps, 8))
    assert np.abs(views[..., :2]).max() <= 1 + 1e-6
    # A view that touches the border blends with what lies outside.
    assert views[..., 2].max() <= 1 + 1e-6 and views[:, 1:-1, 1:-1, 2].min() > 1 - 1e-6
    area = np.abs(np.asarray(maps)[:, 0, 0] * np.asarray(maps)[:, 1, 1])
    assert 0.25 <= area.min() < 0.3 and 0.45 < area.max() <= 0.5
    flipped = views[:, 0, 0, 0] > views[:, 0, -1, 0]
    np.testing.assert_array_equal(flipped, np.asarray(maps)[:, 0, 0] < 0)
    assert 30 < flipped.sum() < 70
    assert centers(views).std(0).min() > 0.1


def test_colors_change_by_one_line_per_channel():
    images = jnp.asarray(noise())
    np.testing.assert_allclose(colored(key(), images, 0.0, 0.0, 0.0), images, atol=1e-6)
    changed = np.asarray(colored(key(), images, 0.4, 0.4, 0.2))
    for before, after in zip(noise(), changed, strict=True):
        lines = [np.polyfit(before[..., c].ravel(), after[..., c].ravel(), 1) for c in range(3)]
        slopes, _ = np.transpose(lines)
        np.testing.assert_allclose(slopes, slopes[0], rtol=1e-4)
        assert 0.6 <= slopes[0] <= 1.4
        shifts = after.mean((0, 1)) - before.mean((0, 1))
        assert np.abs(shifts).max() <= 0.6 and np.ptp(shifts) <= 0.4 and np.ptp(shifts) > 0.01
