"""Class activation maps against the reference, and the law that joins them with Grad-CAM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import swcl

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream import cam
from medinit_jax.models import resnet, unet, vgg, vit
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.network import Network
from medinit_jax.models.statistics import initial_statistics

SHAPE = (32, 32, 3)
IMAGES = np.random.default_rng(0).normal(size=(3, *SHAPE)).astype(np.float32)
CLASSES = np.array([0, 1, 2])


def small_resnet():
    return Network(resnet.resnet(resnet.Variant((1, 1), False), SHAPE, 3, "small", 8))


def started(network):
    params = initial_parameters(network.program, jax.random.key(0))
    return params, initial_statistics(network.program)


def test_maps_of_the_reference():
    held = swcl()
    features = held["cam_fmap"].transpose(0, 2, 3, 1)
    maps = cam.class_activation(features, held["cam_fcw"].T)
    positive, negative = (cam.upsample_aligned(maps[..., k], (28, 28)) for k in (1, 0))
    np.testing.assert_allclose(positive, held["cam_pos"], atol=1e-5)
    np.testing.assert_allclose(negative, held["cam_neg"], atol=1e-5)
    # The bias has no part in a map, where it would show.
    assert np.abs(held["cam_fcb"]).min() > 0.1


def test_the_mean_of_a_map_is_the_logit_without_bias():
    network = small_resnet()
    params, statistics = started(network)
    assert cam.has_cam(network.program)
    maps = cam.activation_map(network, params, statistics, IMAGES, CLASSES)
    assert maps.shape == (3, 16, 16)
    logits = network.apply({"params": params, "batch_stats": statistics}, IMAGES)
    head = params[network.program.head]["bias"]
    expected = np.asarray(logits - head)[np.arange(3), CLASSES]
    np.testing.assert_allclose(maps.mean((1, 2)), expected, rtol=1e-4, atol=1e-5)


def test_grad_cam_of_such_a_network_is_its_cam_without_negatives():
    """The gradient of a mean of h x w places is 1 / (h w) of the weights."""
    network = small_resnet()
    params, statistics = started(network)
    plain = cam.activation_map(network, params, statistics, IMAGES, CLASSES)
    found = cam._grad_cam(network)(params, statistics, jnp.asarray(IMAGES), jnp.asarray(CLASSES))
    np.testing.assert_allclose(found, np.maximum(plain, 0) / 256, rtol=1e-4, atol=1e-7)


PROGRAMS = {
    "pooling in the stem": resnet.resnet(resnet.Variant((1,), True), SHAPE, 3, width=8),
    "flattened": vgg.vgg(vgg.Variant((1, 1), "bn", (4, 8), hidden=16), SHAPE, 3),
    "segmentation": unet.unet(None, SHAPE, 3, width=4, levels=2),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_running_with_a_map_is_running(name):
    network = Network(PROGRAMS[name])
    params, statistics = started(network)
    expected = jax.jit(network.apply)({"params": params, "batch_stats": statistics}, IMAGES)
    found, features = jax.jit(lambda x: cam.run_with_map(network, params, statistics, x))(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert features.ndim == 4
    assert cam.has_cam(network.program) == (name == "pooling in the stem")


def test_tokens_make_a_map():
    network = Network(vit.vit(vit.Variant(16, 2, 2, 8), SHAPE, 3))
    params, statistics = started(network)
    # The head of an untrained transformer may be zero.
    head = params[network.program.head]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    assert not cam.has_cam(network.program)
    maps = cam.activation_map(network, params, statistics, IMAGES, CLASSES)
    assert maps.shape == (3, 4, 4) and maps.min() >= 0 and maps.max() > 0


def test_pixels_of_a_class_are_explained_by_their_mean():
    network = Network(unet.unet(None, SHAPE, 2, width=4, levels=2))
    params, statistics = started(network)
    maps = cam.activation_map(network, params, statistics, IMAGES, np.array([0, 1, 1]))
    assert maps.shape == (3, 32, 32) and np.isfinite(maps).all()


def test_corners_stay_in_place():
    values = np.random.default_rng(0).normal(size=(2, 3, 5))
    found = cam.upsample_aligned(values, (9, 17))
    np.testing.assert_allclose(found[:, ::4, ::4], values, atol=1e-12)
    np.testing.assert_allclose(found[:, 2], (found[:, 0] + found[:, 4]) / 2)


def test_energy_and_overlap_by_hand():
    values = np.array([[4.0, 1.0], [-9.0, 3.0]])
    mask = np.array([[1, 0], [1, 0]])
    assert cam.energy_inside(values, mask) == 4 / 8
    # 4 and 3 exceed a half of 4; one of them lies in a mask of two.
    assert cam.iou_at_half(values, mask) == 1 / 3
    assert cam.energy_inside(-np.ones((2, 2)), mask) == 0
    assert cam.iou_at_half(-np.ones((2, 2)), mask) == 0


def test_drift():
    values = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
    assert cam.drift(values, 3 * values + 2) == pytest.approx(0, abs=1e-6)
    assert cam.drift(values, -values) == pytest.approx(2, abs=1e-6)
    for constant in (0.0, 0.1, 0.7, 1e6):
        flat = np.full((7, 7), constant, np.float32)
        assert cam.drift(flat, np.full((7, 7), 0.3, np.float32)) == 0
        assert cam.drift(flat, values) == 1


def test_an_overlay_keeps_the_image_below():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    values = np.arange(4.0).reshape(2, 2)
    np.testing.assert_array_equal(cam.overlay(image, values, 0.0), image)
    colors = cam.overlay(image, values, 1.0)
    # Viridis goes from dark violet to bright yellow.
    assert colors[0, 0].tolist() == [68, 1, 84] and colors[7, 7, 0] > 240
    with pytest.raises(UsageError, match="strength of an overlay lies in"):
        cam.overlay(image, values, 2.0)
