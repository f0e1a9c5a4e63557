"""What each pretext shows and asks: on images that say where a pixel lies."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ramps import centers, key, ramps

from medinit_jax.hyper.pretexts.contrast import InstanceContrast
from medinit_jax.hyper.pretexts.jigsaw import Jigsaw, permutations
from medinit_jax.hyper.pretexts.masked import MaskedPatches
from medinit_jax.hyper.pretexts.patches import CORNERS, PatchContrast
from medinit_jax.hyper.pretexts.position import NEIGHBORS, RelativePosition
from medinit_jax.hyper.pretexts.rotation import HardRotation, Rotation
from medinit_jax.hyper.pretexts.weak import WeakLabels

COLORLESS = {"brightness": 0.0, "contrast": 0.0, "color": 0.0}


def noise(count=8, size=16):
    return jnp.asarray(np.random.default_rng(0).normal(size=(count, size, size, 3)), jnp.float32)


def test_hard_rotation_turns_one_moved_image():
    views, targets = HardRotation(circle=False).views(noise(), key())
    np.testing.assert_array_equal(targets, [0, 1, 2, 3] * 8)
    for first in range(0, 32, 4):
        for turns in range(4):
            turned = np.rot90(views[first], turns, axes=(0, 1))
            np.testing.assert_array_equal(views[first + turns], turned)
    assert np.abs(np.asarray(views[::4]) - noise()).mean() > 0.5
    still = HardRotation(translate=0.0, tilt=0.0, mirror=0.0).views(noise(), key())
    for own, plain in zip(still, Rotation().views(noise(), key()), strict=True):
        np.testing.assert_allclose(own, plain, atol=1e-5)


def test_contrast_cuts_two_different_views_of_each_image():
    images = ramps(8) + jnp.arange(8, dtype=jnp.float32)[:, None, None, None] * 10
    task = InstanceContrast(**COLORLESS)
    views, targets = task.views(images, key(), {}, 16)
    np.testing.assert_array_equal(targets, np.repeat(np.arange(8), 2))
    np.testing.assert_allclose(views[..., 2].mean((1, 2)) - 1, 10 * np.asarray(targets), atol=0.5)
    assert (np.abs(centers(views)[::2] - centers(views)[1::2]).sum(1) > 0.01).all()


def test_the_second_patch_lies_where_the_target_says():
    task = RelativePosition(**COLORLESS)
    views, targets = task.views(ramps(64), key(), {}, 16)
    np.testing.assert_array_equal(targets[::2], targets[1::2])
    first, second = centers(views)[::2], centers(views)[1::2]
    wanted = 2 * task.spacing * NEIGHBORS[np.asarray(targets)[::2]]
    assert np.abs(second - first - wanted).max() <= 4 * task.jitter + 1e-3
    assert np.abs(first).max() <= 2 * task.jitter + 1e-3
    assert set(np.asarray(targets).tolist()) == set(range(8))
    # Patches do not touch: a gap is left for the jitter.
    assert task.spacing > task.side + task.jitter


@pytest.mark.parametrize(("tiles", "size"), [(2, 32), (3, 32)])
def test_tiles_lie_in_the_order_that_the_target_names(tiles, size):
    task = Jigsaw(tiles=tiles)
    views, targets = task.views(ramps(32, size), key(), {}, 8)
    assert views.shape == (32, size, size, 3)
    side = size // tiles
    for view, target in zip(np.asarray(views), np.asarray(targets), strict=True):
        order = permutations(tiles**2, task.permutations)[target]
        for place, tile in enumerate(order):
            row, column = divmod(place, tiles)
            shown = view[row * side : (row + 1) * side, column * side : (column + 1) * side, :2]
            x, y = (shown.mean((0, 1)) + 1) / 2 * tiles
            assert divmod(int(tile), tiles) == (int(y), int(x))
            # A gap is left on one side at least.
            assert np.ptp(shown[..., 0]) <= 2 * task.kept / tiles
    assert len(set(np.asarray(targets).tolist())) > 4


def test_permutations_are_far_from_each_other():
    found = permutations(4, 8)
    assert found[0].tolist() == [0, 1, 2, 3] and len({tuple(p) for p in found.tolist()}) == 8
    differ = [(a != b).sum() for a, b in itertools.combinations(found, 2)]
    # No 5 permutations of 4 tiles differ everywhere; two in one transposition would be 2.
    assert min(differ) >= 3 and (found[:4] != found[[1, 2, 3, 0]]).all()
    nine = permutations(9, 30)
    assert min((a != b).sum() for a, b in itertools.combinations(nine, 2)) >= 7


def test_the_masked_cell_is_the_same_in_a_group_and_its_patch_is_what_was_there():
    images, task = noise(16, 32), MaskedPatches()
    views, targets = task.views(images, key(), {}, 4)
    cells, patches = np.asarray(targets["cell"]), np.asarray(targets["patch"])
    assert (cells.reshape(4, 4) == cells[::4, None]).all() and len(set(cells.tolist())) > 1
    for image, view, cell, patch in zip(np.asarray(images), np.asarray(views), cells, patches,
                                        strict=True):  # fmt: skip
        top, left = 8 * (1 + cell // 2), 8 * (1 + cell % 2)
        held = image[top : top + 8, left : left + 8]
        assert not view[top : top + 8, left : left + 8].any()
        assert (view != image).any(-1).sum() == 64
        small = np.asarray(jax.image.resize(held, (4, 4, 3), "linear")).ravel()
        np.testing.assert_allclose(patch, (small - small.mean()) / small.std(), atol=1e-3)


def test_weak_labels_are_what_was_given():
    facts = {"label": jnp.array([0, 2, -1, 1], jnp.int32)}
    images = noise(4)
    views, targets = WeakLabels().views(images, key(), facts, 2)
    np.testing.assert_array_equal(views, images)
    np.testing.assert_array_equal(targets, [0, 1, -1, 1])
    _, classes = WeakLabels(label="class", num_classes=3).views(images, key(), facts, 2)
    np.testing.assert_array_equal(classes, facts["label"])
    # A class that the head does not have is no label.
    _, fewer = WeakLabels(label="class").views(images, key(), facts, 2)
    np.testing.assert_array_equal(fewer, [0, -1, -1, 1])


def test_patches_lie_in_the_corners_and_have_their_labels():
    facts = {"label": jnp.array([0, 3], jnp.int32), "patient": jnp.array([7, 9], jnp.int32)}
    task = PatchContrast(scheme="all", **COLORLESS)
    views, columns = task.views(ramps(2), key(), facts, 16)
    assert views.shape == (16, 32, 32, 3) and columns.dtype == jnp.int32
    position, abnormality, patient = np.asarray(columns).T
    np.testing.assert_array_equal(position, np.tile(np.repeat(range(4), 2), 2))
    np.testing.assert_array_equal(np.sign(centers(views)), CORNERS[position])
    np.testing.assert_array_equal(abnormality, np.repeat([0, 1], 8))
    np.testing.assert_array_equal(patient, np.repeat([7, 9], 8))
    assert task.needs == ("label", "patient") and PatchContrast(scheme="position").needs == ()
    _, few = PatchContrast(scheme="position").views(ramps(2), key(), {}, 16)
    np.testing.assert_array_equal(few[:, 0], position)
