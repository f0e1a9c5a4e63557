"""The comparison of a small CNN with thumbnails measures what it says."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest


@pytest.fixture(scope="module")
def phantom_tasks():
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    import phantom_tasks

    yield phantom_tasks
    sys.path.remove(folder)


def made(count, seed, texture):
    """Images whose class is their brightness, or a texture that averages out in thumbnails."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    images = rng.integers(100, 140, (count, 32, 32, 3))
    pattern = 20 * (np.indices((32, 32)).sum(axis=0) % 2 * 2 - 1) if texture else 20
    images = images + labels[:, None, None, None] * np.broadcast_to(pattern, (32, 32))[..., None]
    return images.astype(np.uint8), labels


def test_thumbnails_see_brightness_and_no_texture(phantom_tasks):
    bright = phantom_tasks.thumbnail_auc(made(80, 0, False), made(60, 1, False), 8)
    assert bright > 0.99
    assert phantom_tasks.thumbnail_auc(made(80, 0, True), made(60, 1, True), 8) < 0.75


def test_the_cnn_sees_texture(phantom_tasks):
    images, labels = made(96, 0, True)
    test, test_labels = made(40, 1, True)
    # optax' schedules divide integers by floats.
    with jax.numpy_dtype_promotion("standard"):
        scores = phantom_tasks.cnn_scores(images, labels, test, 6)
    assert phantom_tasks.roc_auc(test_labels, scores) > 0.95


def test_sets_are_of_different_patients_and_labels_of_the_task(phantom_tasks):
    images, labels = phantom_tasks.draw("ct", phantom_tasks._FIRST_SEED, 12, 24)
    assert images.shape == (12, 24, 24, 3) and set(labels) == {0, 1}
    assert phantom_tasks._TEST_SEED - phantom_tasks._FIRST_SEED > 1_000_000
