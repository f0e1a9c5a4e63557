import numpy as np
import pytest

from medinit_jax.data.augment import NORMALIZATION, Augmentation, halved, hard, normalize, warp


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(size=16, channels=3):
    return rng(5).integers(0, 256, (size, size, channels), dtype=np.uint8)


def test_default_changes_nothing():
    augmentation = Augmentation()
    matrix = augmentation.draw(rng())
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-12)
    np.testing.assert_array_equal(warp(picture(), matrix), picture())
    assert augmentation.is_identity and not hard().is_identity


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mirror": 1.0}, lambda x: x[:, ::-1]),
        ({"flip": 1.0}, lambda x: x[::-1]),
        ({"mirror": 1.0, "flip": 1.0}, lambda x: np.rot90(x, 2)),
    ],
)
def test_flips_are_exact(settings, expected):
    image = picture()
    moved = warp(image, Augmentation(**settings).draw(rng()))
    np.testing.assert_array_equal(moved, expected(image))


def test_laterality_mirrors_left_eyes_only():
    augmentation, image = Augmentation(normalize_laterality=True), picture()
    for eye, expected in ((1, image), (0, image), (-1, image[:, ::-1])):
        np.testing.assert_array_equal(warp(image, augmentation.draw(rng(), eye)), expected)


def test_mirror_and_laterality_cancel():
    augmentation = Augmentation(normalize_laterality=True, mirror=1.0)
    np.testing.assert_array_equal(warp(picture(), augmentation.draw(rng(), -1)), picture())


def test_translation_moves_whole_pixels():
    image = picture(8)
    matrix = np.array([[1.0, 0, 2 * 2 / 8], [0, 1.0, 0]])
    moved = warp(image, matrix)
    np.testing.assert_array_equal(moved[:, :6], image[:, 2:])
    assert not moved[:, 6:].any()
    reflected = warp(image, matrix, border="reflect")
    np.testing.assert_array_equal(reflected[:, 6], image[:, 6])


def test_zoom_above_one_enlarges_the_middle():
    image = np.zeros((32, 32), np.uint8)
    image[12:20, 12:20] = 200
    for zoom, low, high in ((2.0, 230, 290), (0.5, 10, 24)):
        moved = warp(image, Augmentation(zoom=(zoom, zoom)).draw(rng()))
        assert low < (moved > 100).sum() < high


def test_translation_stays_within_its_range_and_fills_it():
    augmentation = Augmentation(translate=0.2)
    shifts = np.stack([augmentation.draw(rng(s))[:, 2] for s in range(500)]) / 2
    assert np.abs(shifts).max() <= 0.2
    assert np.abs(shifts).max() > 0.19
    np.testing.assert_allclose(shifts.mean(axis=0), 0, atol=0.02)


def test_tilt_has_its_deviation():
    matrices = np.stack([hard().draw(rng(s)) for s in range(1000)])
    sign = np.sign(np.linalg.det(matrices[..., :2]))
    degrees = np.degrees(np.arctan2(matrices[:, 0, 1] * sign, matrices[:, 1, 1]))
    assert np.std(degrees) == pytest.approx(10, rel=0.1)
    assert np.mean(sign < 0) == pytest.approx(0.5, abs=0.05)


def test_difficulty_scales_the_same_draw():
    full, half = hard().draw(rng(3)), hard(mirror=0).scaled(0.5).draw(rng(3))
    none = hard().scaled(0.0).draw(rng(3))
    np.testing.assert_allclose(none, [[1, 0, 0], [0, 1, 0]], atol=1e-12)

    def shift(matrix):
        return np.linalg.norm(matrix[:, 2])

    assert shift(half) == pytest.approx(shift(full) / 2)


def test_image_and_mask_move_together():
    yy, xx = np.mgrid[:64, :64]
    mask = ((yy - 28) ** 2 + (xx - 36) ** 2 < 12**2).astype(np.uint8)
    augmentation = Augmentation(zoom=(0.8, 1.2), translate=0.1, tilt=10, rotate=30, mirror=0.5)
    for seed in range(20):
        matrix = augmentation.draw(rng(seed))
        image = warp(mask * 255, matrix)
        moved = warp(mask, matrix, mask=True)
        assert set(np.unique(moved)) <= {0, 1}
        assert np.mean((image > 127) != (moved > 0)) < 0.01


def test_reduction_averages_instead_of_skipping_pixels():
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    matrix = Augmentation().draw(rng())
    assert np.abs(warp(checkers, matrix, size=16).astype(int) - 127).max() <= 1
    assert set(np.unique(warp(checkers, matrix, size=16, mask=True))) <= {0, 255}


def test_output_size_keeps_the_field():
    """A map in relative coordinates means the same at every size."""
    matrix = Augmentation(translate=0.2).draw(rng(1))
    image = np.repeat(np.repeat(picture(8), 4, axis=0), 4, axis=1)
    large = warp(image, matrix)
    small = warp(image, matrix, size=16)
    averaged = large.reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(averaged[2:-2, 2:-2] - small[2:-2, 2:-2]).mean() < 12


def test_normalize_by_hand():
    mean, std = NORMALIZATION["fundus"]
    out = normalize(np.full((1, 2, 2, 3), 255, np.uint8), mean, std)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[0, 0, 0], [(1 - m) / s for m, s in zip(mean, std, strict=True)])


@pytest.mark.parametrize("shape", ((64, 64), (63, 61)))
def test_halving_averages_and_stops_in_time(shape):
    image = picture(64)[: shape[0], : shape[1]]
    assert halved(image, 33) is image
    even = np.pad(image, ((0, 64 - shape[0]), (0, 64 - shape[1]), (0, 0)), "edge")
    even = even[:, : shape[1] + shape[1] % 2]
    means = even.reshape(32, 2, -1, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved(image, 30) - means).max() <= 0.5
    assert halved(image, 8).shape == (8, 8, 3)


def test_a_reduced_image_moves_as_the_whole_one():
    yy, xx = np.mgrid[:101, :103]
    whole = (yy + xx).astype(np.float32)
    half = np.pad(whole, ((0, 1), (0, 1)), "edge").reshape(51, 2, 52, 2).mean(axis=(1, 3))
    matrix = Augmentation(zoom=(1.5, 1.5), tilt=10, translate=0.02).draw(rng(2))
    moved = warp(half, matrix, 60, full=(101, 103))
    np.testing.assert_allclose(moved, warp(whole, matrix, 60), atol=0.1)
