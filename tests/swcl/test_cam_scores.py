"""Abnormality against the reference's arrays, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import swcl

from medinit_jax.core.errors import UsageError
from medinit_jax.swcl.cam_scores import abnormality, background_threshold, foreground
from medinit_jax.swcl.patch_geometry import CUTS, named

# The authors' statistics, in the order of their code.
MEAN, STD = (0.1633, 0.2259, 0.3219), (0.1756, 0.2195, 0.3038)


def reference():
    """Returns the reference's arrays, its features and its normalized images, channels last."""
    held = swcl()
    images = held["cam_rgb01"].transpose(0, 2, 3, 1)
    normalized = ((images - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    return held, held["cam_fmap"].transpose(0, 2, 3, 1), normalized


def made(seed=0, side=22):
    """Returns features, a kernel and images of which a third of the pixels is dark."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 1, (2, side, side, 3)) * (rng.uniform(size=(2, side, side, 1)) > 0.3)
    normalized = ((images - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    features = rng.normal(size=(2, 5, 5, 8)).astype(np.float32)
    return features, rng.normal(size=(8, 2)).astype(np.float32), normalized


def test_maps_mask_and_scores_of_the_reference():
    held, features, images = reference()
    assert background_threshold(MEAN, STD) == pytest.approx(float(held["cam_bgthr"]), abs=1e-12)
    seen = np.asarray(foreground(jnp.asarray(images), MEAN, STD))
    np.testing.assert_array_equal(seen, held["cam_mask"])
    assert 0 < seen.mean() < 1
    score = jax.jit(abnormality, static_argnums=(3, 4, 5, 6))
    maps, scores = score(features, held["cam_fcw"].T, images, MEAN, STD, 14, "background")
    np.testing.assert_allclose(maps, held["cam_masked"], atol=1e-6)
    np.testing.assert_allclose(scores, held["cam_scores"], atol=1e-6)
    assert tuple(held["cam_patchorder"]) == CUTS
    plain, _ = score(features, held["cam_fcw"].T, images, MEAN, STD, 14, "none")
    np.testing.assert_allclose(plain, held["cam_softmax"], atol=1e-6)


def test_what_is_bright_in_one_channel_is_no_background():
    """The sum decides: by hand, 15/255 in all channels is the border itself."""
    dark, equal, blue = np.full(3, 14 / 255), np.full(3, 15.01 / 255), np.array([0, 0, 0.5])
    pixels = (np.stack([dark, equal, blue]) - np.array(MEAN)) / np.array(STD)
    found = foreground(jnp.asarray(pixels[None].astype(np.float32)), MEAN, STD)
    # 0.5 / 0.3038 = 1.65 exceeds 15/255 * (1/0.1756 + 1/0.2195 + 1/0.3038) = 0.80.
    assert found.tolist() == [[False, True, True]]


@pytest.mark.parametrize("mask", ["background", "none"])
def test_a_mirrored_eye_has_the_mirrored_map(mask):
    features, kernel, images = made()
    maps, scores = abnormality(features, kernel, images, MEAN, STD, 12, mask)
    flipped, mirrored = abnormality(
        features[:, :, ::-1], kernel, images[:, :, ::-1], MEAN, STD, 12, mask
    )
    np.testing.assert_allclose(flipped, maps[:, :, ::-1], atol=1e-6)
    order = [CUTS.index(named(cut, "right")) for cut in CUTS]
    # Margins are even here; an odd one would move the central patch by a pixel.
    np.testing.assert_allclose(mirrored, np.asarray(scores)[:, order], atol=1e-6)


def test_a_shift_of_both_classes_and_the_bias_change_nothing():
    features, kernel, images = made(1)
    expected = abnormality(features, kernel, images, MEAN, STD, 12)[1]
    shifted = kernel + np.float32(0.7)
    found = abnormality(features, shifted, images, MEAN, STD, 12)[1]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    swapped = abnormality(features, kernel[:, ::-1], images, MEAN, STD, 12, "none")[0]
    plain = abnormality(features, kernel, images, MEAN, STD, 12, "none")[0]
    np.testing.assert_allclose(swapped, 1 - plain, atol=1e-6)


def test_half_precision_goes_in_and_single_comes_out():
    features, kernel, images = made(2)
    expected = abnormality(features, kernel, images, MEAN, STD, 12, "none")
    half = jnp.asarray(features, jnp.bfloat16), kernel, jnp.asarray(images, jnp.bfloat16)
    found = abnormality(*half, MEAN, STD, 12, "none")
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype == jnp.float32
        np.testing.assert_allclose(one, other, atol=0.02)


def test_compiled_it_holds_no_map_of_every_class():
    """Beside its outputs it needs less than two maps of the image's size."""
    images = jax.ShapeDtypeStruct((4, 64, 64, 3), jnp.float32)
    features = jax.ShapeDtypeStruct((4, 4, 4, 32), jnp.float32)
    kernel = jax.ShapeDtypeStruct((32, 2), jnp.float32)
    lowered = jax.jit(lambda f, k, x: abnormality(f, k, x, MEAN, STD, 32)).lower(
        features, kernel, images
    )
    needed = lowered.compile().memory_analysis()
    assert needed is not None
    assert needed.temp_size_in_bytes <= 2 * 4 * 64 * 64 * 4


def test_wrong_arguments_are_explained():
    features, kernel, images = made()
    with pytest.raises(UsageError, match="no mask 'fov' of abnormality; use background or none"):
        abnormality(features, kernel, images, MEAN, STD, 12, "fov")
    with pytest.raises(UsageError, match="square images, not on 22 x 20"):
        abnormality(features, kernel, images[:, :, :20], MEAN, STD, 12)
    with pytest.raises(UsageError, match="side 23 cannot be cut from photographs of side 22"):
        abnormality(features, kernel, images, MEAN, STD, 23)
