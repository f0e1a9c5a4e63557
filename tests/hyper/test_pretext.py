import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medinit_jax.data.augment import NORMALIZATION, Augmentation, hard
from medinit_jax.data.phantoms import PHANTOMS
from medinit_jax.data.pipeline import BatchOptions, BatchSource, load_examples
from medinit_jax.data.sources import ArraySource
from medinit_jax.hyper.pretext import ridge_accuracy, thumbnails
from medinit_jax.hyper.pretexts.rotation import Rotation, inscribed_circle

MEAN, STD = NORMALIZATION["fundus"]
EASY, HARD = Augmentation(), hard()


def key(seed=0):
    return jax.random.key(seed)


def images(count=3, size=6, channels=2):
    shape = (count, size, size, channels)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def phantoms(first, count, size=32):
    """Draws `count` fundus phantoms, patients apart from those of other tests."""
    fundus = PHANTOMS["fundus"]
    drawn = [fundus.render(first + i // 2, fundus.eyes[i % 2], size) for i in range(count)]
    return ArraySource(np.stack([d["image"] for d in drawn]), np.array([d["eye"] for d in drawn]))


@pytest.fixture(scope="module")
def few():
    """Few training and test phantoms."""
    return phantoms(5000, 400), phantoms(8000, 200)


def options(augmentation, batch=16, seed=0):
    return BatchOptions(batch, seed, augmentation, MEAN, STD)


def test_four_mode_turns_every_image_by_every_angle():
    views, targets = Rotation(circle=False).views(images(), key())
    assert views.shape == (12, 6, 6, 2) and targets.dtype == jnp.int32
    np.testing.assert_array_equal(targets, [0, 1, 2, 3] * 3)
    for row, target in enumerate(np.asarray(targets)):
        expected = np.rot90(images()[row // 4], target, axes=(0, 1))
        np.testing.assert_array_equal(views[row], expected)


@pytest.mark.parametrize("bn_group", [4, 8, 12])
def test_every_group_of_views_holds_all_angles_equally(bn_group):
    _, targets = Rotation().views(images(6), key())
    for group in np.asarray(targets).reshape(-1, bn_group):
        assert (np.bincount(group, minlength=4) == bn_group // 4).all()


def test_one_mode_turns_independently_and_uniformly():
    rotation = Rotation(mode="one", circle=False)
    many = np.repeat(images(1), 400, axis=0)
    views, targets = rotation.views(many, key())
    assert views.shape == many.shape and rotation.copies == 1
    for view, target in zip(views[:20], np.asarray(targets)[:20], strict=True):
        np.testing.assert_array_equal(view, np.rot90(many[0], target, axes=(0, 1)))
    # Five standard deviations of a count of 100 in 400.
    np.testing.assert_allclose(np.bincount(targets, minlength=4), 100, atol=43)
    assert not np.array_equal(targets, rotation.views(many, key(1))[1])


@pytest.mark.parametrize("mode", ["four", "one"])
def test_jit_changes_nothing(mode):
    rotation = Rotation(mode=mode)
    plain, compiled = rotation.views(images(), key()), jax.jit(rotation.views)(images(), key())
    jax.tree.map(np.testing.assert_array_equal, plain, compiled)


def test_circle_removes_the_corners_and_nothing_else():
    views, _ = Rotation().views(np.ones((1, 8, 8, 1), np.float32), key())
    mask = inscribed_circle(8)
    assert not mask[0, 0] and not mask[0, 1] and mask[0, 3] and mask[3, 0]
    np.testing.assert_array_equal(mask, np.rot90(mask))
    for view in np.asarray(views):
        np.testing.assert_array_equal(view[..., 0], mask)


def test_loss_by_hand():
    rotation = Rotation()
    logits, targets = jnp.log(jnp.array([[1.0, 2, 3, 4], [4.0, 3, 2, 1]])), jnp.array([3, 1])
    loss, accuracy = rotation.loss(logits, targets)
    np.testing.assert_allclose(loss, -(np.log(0.4) + np.log(0.3)) / 2, rtol=1e-6)
    assert accuracy == 0.5
    smooth, _ = dataclasses.replace(rotation, label_smoothing=0.2).loss(logits, targets)
    mean_log = np.log([0.1, 0.2, 0.3, 0.4]).mean()
    expected = 0.8 * float(loss) - 0.2 * mean_log
    np.testing.assert_allclose(smooth, expected, rtol=1e-6)


def test_gradient_of_the_loss_is_probability_minus_target():
    logits, targets = jnp.array([[0.5, -1.0, 2.0, 0.0]]), jnp.array([1])
    gradient = jax.jit(jax.grad(lambda x: Rotation().loss(x, targets)[0]))(logits)
    expected = jax.nn.softmax(logits) - jax.nn.one_hot(targets, 4)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.parametrize("size", [16, 28, 32])
def test_thumbnails_average_areas(size):
    flat = np.full((1, size, size, 3), 5, np.uint8)
    small = thumbnails(flat).reshape(8, 8, 3)
    np.testing.assert_allclose(small[3:5, 3:5], 5)
    assert not small[0, 0].any()
    noise = np.random.default_rng(0).normal(size=(1, size, size, 1))
    fine = np.repeat(np.repeat(noise[0, ..., 0], 8, axis=0), 8, axis=1)
    cells = fine.reshape(8, size, 8, size).mean(axis=(1, 3))
    np.testing.assert_allclose(
        thumbnails(noise).reshape(8, 8)[2:6, 2:6], cells[2:6, 2:6], rtol=1e-9
    )


def test_ridge_solves_what_is_linear_and_guesses_what_is_not_there():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400, 16, 16, 1))
    targets = rng.integers(0, 4, 400)
    assert 0.1 < ridge_accuracy(noise[:300], targets[:300], noise[300:], targets[300:]) < 0.4
    noise[np.arange(400), 6, 4 + 2 * targets] += 20
    assert ridge_accuracy(noise[:300], targets[:300], noise[300:], targets[300:]) > 0.95


def ridge_of(source, test, augmentation):
    four, one = Rotation(), Rotation(mode="one")
    train = load_examples(source, np.arange(len(source)), options(augmentation))["image"]
    held_out = load_examples(test, np.arange(len(test)), options(augmentation, seed=1))["image"]
    return ridge_accuracy(
        *map(np.asarray, four.views(train, key())), *map(np.asarray, one.views(held_out, key()))
    )


def test_a_thumbnail_solves_the_easy_task_and_fails_the_hard_one(few):
    assert ridge_of(*few, EASY) > 0.9
    assert ridge_of(*few, HARD) < 0.5


class SmallNetwork(nn.Module):
    """Six convolutions."""

    @nn.compact
    def __call__(self, x):
        for width, stride in ((24, 1), (48, 2), (48, 1), (96, 2), (96, 1), (128, 2)):
            x = nn.Conv(width, (3, 3), strides=(stride, stride), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        return nn.Dense(4)(x.mean((1, 2)))


def accuracy_after(source, test, augmentation, steps, images_per_step=16):
    """Trains a small network on the rotation of a source and tests it on independent images."""
    network, rotation = SmallNetwork(), Rotation()
    variables = network.init(key(), jnp.zeros((1, 32, 32, 3)))
    optimizer = optax.adam(2e-3)
    state = variables["params"], optimizer.init(variables["params"])

    def logits(params, views):
        stats = variables["batch_stats"]
        return network.apply(
            {"params": params, "batch_stats": stats}, views, mutable=["batch_stats"]
        )[0]

    @jax.jit
    def step(state, batch):
        params, memory = state
        views, targets = rotation.views(batch, key())
        gradient = jax.grad(lambda p: rotation.loss(logits(p, views), targets)[0])(params)
        # Adam's own bias correction mixes Python floats and the integer count.
        with jax.numpy_dtype_promotion("standard"):
            updates, memory = optimizer.update(gradient, memory)
        return optax.apply_updates(params, updates), memory

    batches = BatchSource(source, options(augmentation, images_per_step))
    for number in range(steps):
        state = step(state, batches[number]["image"])
    one = Rotation(mode="one")
    held_out = load_examples(test, np.arange(len(test)), options(augmentation, seed=1))["image"]
    views, targets = one.views(held_out, key(1))
    return float(one.loss(jax.jit(logits)(state[0], views), targets)[1])


def test_a_network_learns_the_easy_task_in_a_few_steps(few):
    assert accuracy_after(*few, Augmentation(normalize_laterality=True), 40) > 0.8


def test_nothing_but_the_image_tells_the_angle():
    """Noise without a direction, through the same draws, must stay at chance."""
    noise = np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3), dtype=np.uint8)
    source, test = ArraySource(noise[:400]), ArraySource(noise[400:])
    assert 0.12 < accuracy_after(source, test, HARD, 25) < 0.38
    assert 0.12 < ridge_of(source, test, HARD) < 0.38


@pytest.mark.slow
def test_a_network_learns_the_hard_task_that_a_thumbnail_fails():
    source, test = phantoms(5000, 3000), phantoms(8000, 600)
    assert ridge_of(source, test, HARD) < 0.5
    assert accuracy_after(source, test, HARD, 800) >= 0.90
