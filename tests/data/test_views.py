import dataclasses

import numpy as np
import pytest
from oracles import swcl

from medinit_jax.data import color, pillow_color
from medinit_jax.data.views import RECIPES, View, ViewRecipe, Views, dino, make_views, take_view

STILL = Views(area=(1, 1), aspect=(1, 1), mirror=0, jitter=0, gray=0, blur=0)


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(height=64, width=64):
    return rng(5).integers(0, 256, (height, width, 3), dtype=np.uint8)


def draws(views, count=1000, height=100, width=120):
    return [views.draw(rng(seed), height, width) for seed in range(count)]


def test_no_ranges_give_the_image_again():
    image = picture()
    found, local = make_views(image, ViewRecipe((STILL, STILL), 64), rng())
    np.testing.assert_array_equal(found, [image, image])
    assert local.shape == (0, 96, 96, 3)


@pytest.mark.parametrize("name", RECIPES)
def test_views_depend_on_the_seed_alone(name):
    image, recipe = picture(80, 120), RECIPES[name]
    first, again, other = (make_views(image, recipe, rng(seed), 56) for seed in (7, 7, 8))
    assert first[0].shape == (len(recipe.views), 56, 56, 3) and first[0].dtype == np.uint8
    for found, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(found, same)
        assert not found.size or (found != different).any()
        assert all((one != found[0]).any() for one in found[1:])
    assert len(first[1]) == len(recipe.local)
    assert not recipe.local or first[1].shape[1:] == (24, 24, 3)


def test_drawing_leaves_numpys_global_state_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    make_views(picture(), RECIPES["dino_official"], rng(), 32)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


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
    assert np.abs(small.astype(int) - 127).max() <= 4


def test_resized_crops_are_pillows():
    held = swcl()
    left, top, width, height = held["pil_crop_box"].tolist()
    view = View((top, left, height, width), False, (), "bilinear")
    found = take_view(held["pil_in"], view, 32)
    np.testing.assert_array_equal(found, held["pil_crop_resize32"])
    cubic = take_view(held["pil_in"], view._replace(interpolation="bicubic"), 32)
    difference = np.abs(cubic.astype(int) - found)
    assert 1 < difference.max() < 128


@pytest.mark.parametrize(
    ("interpolation", "changes"),
    [
        ("fast", color.CHANGES),
        ("bilinear", pillow_color.CHANGES),
        ("bicubic", pillow_color.CHANGES),
    ],
)
def test_colors_are_those_of_what_resizes(interpolation, changes):
    image = rng().integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for change, amount in (("hue", 0.13), ("brightness", 1.3), ("contrast", 0.7)):
        view = View((0, 0, 16, 16), False, ((change, amount),), interpolation)
        np.testing.assert_array_equal(take_view(image, view, 16), changes[change](image, amount))
    assert np.any(color.hue(image, 0.13) != pillow_color.hue(image, 0.13))


def share_of(name, views, draws=1500):
    """How often a change is drawn."""
    drawn = (views.draw(rng(seed), 100, 100) for seed in range(draws))
    return np.mean([name in dict(view.changes) for view in drawn])


@pytest.mark.parametrize(
    ("name", "place", "blur", "solarize"),
    [
        ("contrastive", 0, 0.5, 0.1),
        ("contrastive", 1, 0.5, 0.1),
        ("byol_asym", 0, 1.0, 0.0),
        ("byol_asym", 1, 0.1, 0.2),
        ("dino_official", 0, 1.0, 0.0),
        ("dino_official", 1, 0.1, 0.2),
        ("simclr_orig", 1, 0.5, 0.0),
        ("labeler", 3, 0.0, 0.0),
        ("ft_cls", 0, 0.0, 0.0),
    ],
)
def test_views_of_a_recipe_are_changed_as_often_as_stated(name, place, blur, solarize):
    views = RECIPES[name].views[place]
    assert share_of("blur", views) == pytest.approx(blur, abs=0.04)
    assert share_of("solarize", views) == pytest.approx(solarize, abs=0.04)
    jitter = 0.0 if name == "ft_cls" else 0.8
    assert share_of("hue", views) == pytest.approx(jitter, abs=0.04)


def test_changes_come_in_the_authors_order():
    views = dataclasses.replace(RECIPES["contrastive"].views[0], jitter=1, gray=1, blur=1)
    changes = dataclasses.replace(views, solarize=1).draw(rng(), 50, 50).changes
    names = [name for name, _ in changes]
    assert sorted(names[:4]) == ["brightness", "contrast", "hue", "saturation"]
    assert names[4:] == ["saturation", "blur", "solarize"]
    assert changes[4][1] == 0 and changes[6][1] == 0.5
    orders = {
        tuple(name for name, _ in views.draw(rng(seed), 50, 50).changes[:4]) for seed in range(500)
    }
    assert len(orders) == 24


@pytest.mark.parametrize(
    ("name", "area", "factor", "saturation", "hue", "interpolation"),
    [
        ("contrastive", (0.8, 1.0), 0.4, 0.4, 0.1, "bilinear"),
        ("labeler", (0.8, 1.0), 0.4, 0.4, 0.1, "bilinear"),
        ("simclr_orig", (0.08, 1.0), 0.8, 0.8, 0.2, "fast"),
        ("byol_asym", (0.08, 1.0), 0.4, 0.2, 0.1, "bicubic"),
        ("dino_official", (0.4, 1.0), 0.4, 0.2, 0.1, "bicubic"),
    ],
)
def test_ranges_of_a_recipe(name, area, factor, saturation, hue, interpolation):
    for views in RECIPES[name].views:
        drawn = [views.draw(rng(seed), 400, 400) for seed in range(1500)]
        shares = [view.box[2] * view.box[3] / 400**2 for view in drawn]
        assert area[0] - 0.005 < min(shares) < area[0] + 0.02 and max(shares) > area[1] - 0.03
        assert {view.interpolation for view in drawn} == {interpolation}
        for change, low, high in (
            ("brightness", 1 - factor, 1 + factor),
            ("contrast", 1 - factor, 1 + factor),
            ("hue", -hue, hue),
        ):
            amounts = np.array(
                [
                    dict(v.changes)[change]
                    for v in drawn
                    if v.changes[:1] and change in dict(v.changes)
                ]
            )
            assert low <= amounts.min() and amounts.max() <= high
            assert np.ptp(amounts) > 0.98 * (high - low)
        # A gray view's saturation comes twice, the second time as 0.
        amounts = [
            amount
            for v in drawn
            for change, amount in v.changes[:4]
            if change == "saturation" and amount
        ]
        assert 1 - saturation <= min(amounts) and max(amounts) <= 1 + saturation
        assert np.ptp(amounts) > 1.96 * saturation


def test_local_views_of_dino_show_little():
    recipe = dino(3)
    assert len(recipe.local) == 3 and len(RECIPES["dino_official"].local) == 8
    drawn = [recipe.local[0].draw(rng(seed), 400, 400) for seed in range(500)]
    shares = [view.box[2] * view.box[3] / 400**2 for view in drawn]
    assert 0.045 < min(shares) < 0.08 and 0.37 < max(shares) <= 0.41
    assert share_of("blur", recipe.local[0]) == pytest.approx(0.5, abs=0.04)
    assert share_of("solarize", recipe.local[0]) == 0
