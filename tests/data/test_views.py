import numpy as np
import pytest

from medinit_jax.data import color
from medinit_jax.data.views import View, Views, take_view, two_views

STILL = Views(area=(1, 1), aspect=(1, 1), mirror=0, jitter=0, gray=0, blur=0)


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(height=64, width=64):
    return rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)


def draws(views, count=1000, height=100, width=120):
    return [views.draw(rng(seed), height, width) for seed in range(count)]


def test_no_ranges_give_the_image_twice():
    image = picture()
    np.testing.assert_array_equal(two_views(image, STILL, 64, rng()), [image, image])


def test_views_depend_on_the_seed_alone():
    image = picture(80, 120)
    first, again = (two_views(image, Views(), 32, rng(7)) for _ in range(2))
    assert first.shape == (2, 32, 32, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()
    assert (first != two_views(image, Views(), 32, rng(8))).any()


def test_crops_have_their_areas_and_shapes_and_lie_everywhere():
    boxes = np.array([view.box for view in draws(Views())])
    top, left, height, width = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (top + height <= 100).all() and (left + width <= 120).all()
    share = height * width / (100 * 120)
    assert 0.075 < share.min() < 0.1 and 0.9 < share.max() <= 1
    shape = width / height
    assert 0.72 < shape.min() < 0.78 and 1.28 < shape.max() < 1.39
    assert top.min() == 0 and (top + height).max() == 100
    assert left.min() == 0 and (left + width).max() == 120


def test_a_shape_that_never_fits_becomes_the_middle():
    views = Views(area=(1, 1), aspect=(1, 1))
    assert views.draw(rng(), 10, 40).box == (0, 15, 10, 10)
    assert views.draw(rng(), 41, 10).box == (15, 0, 10, 10)


def test_changes_come_as_often_and_as_strong_as_stated():
    drawn = draws(Views(), 2000)
    named = [dict(view.changes) for view in drawn]
    lost = [("saturation", 0.0) in view.changes for view in drawn]
    assert np.mean([view.mirrored for view in drawn]) == pytest.approx(0.5, abs=0.04)
    assert np.mean(["hue" in changes for changes in named]) == pytest.approx(0.8, abs=0.04)
    assert np.mean(["blur" in changes for changes in named]) == pytest.approx(0.5, abs=0.04)
    assert np.mean(lost) == pytest.approx(0.2, abs=0.04)
    for name, low, high in (
        ("brightness", 0.2, 1.8),
        ("contrast", 0.2, 1.8),
        ("hue", -0.2, 0.2),
        ("blur", 0.1, 2.0),
    ):
        amounts = np.array([changes[name] for changes in named if name in changes])
        assert low <= amounts.min() and amounts.max() <= high
        assert np.ptp(amounts) > 0.98 * (high - low)
    first = [view.changes[0][0] for view in drawn if len(view.changes) >= 4]
    for name in ("brightness", "contrast", "saturation", "hue"):
        assert np.mean([one == name for one in first]) == pytest.approx(0.25, abs=0.04)


def test_factors_do_not_become_negative():
    drawn = draws(Views(brightness=2.0, jitter=1.0), 200)
    assert min(dict(view.changes)["brightness"] for view in drawn) >= 0


def test_a_view_is_crop_then_flip_then_changes_in_order():
    image = picture()
    changes = (("contrast", 1.6), ("brightness", 0.5), ("blur", 1.0))
    view = View((8, 16, 32, 32), True, changes)
    expected = np.ascontiguousarray(image[8:40, 16:48][:, ::-1])
    for name, amount in changes:
        expected = color.CHANGES[name](expected, amount)
    np.testing.assert_array_equal(take_view(image, view, 32), expected)


def test_large_crops_are_averaged():
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = np.repeat(checkers[..., None], 3, axis=-1)
    small = take_view(image, View((0, 0, 64, 64), False, ()), 16)
    assert np.abs(small.astype(int) - 127).max() <= 1
