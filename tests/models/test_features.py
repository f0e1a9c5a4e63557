"""Features before the head: those of SWCL's authors, and the laws that join them to logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import swcl
from reference_weights import bit as bit_name
from reference_weights import classifier, encoder_state, loaded, state_of
from reference_weights import resnet as resnet_name

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.models import bit, convnext, resnet, unet, vgg, vit, zoo
from medinit_jax.models.features import encoder_params, features
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.network import Network
from medinit_jax.models.statistics import initial_statistics

SHAPE = (32, 32, 3)
IMAGES = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
# Networks whose logits are one linear layer of the pooled features.
LINEAR = {
    "resnet": resnet.resnet(resnet.Variant((1, 1), False), SHAPE, 3, "small", 8),
    "bit": bit.bit(bit.Variant((1, 1), width=8), SHAPE, 3, "small"),
    "vit": vit.vit(vit.Variant(16, 2, 2, 8), SHAPE, 3),
    "vit without class token": vit.vit(vit.Variant(16, 2, 2, 8, class_token=False), SHAPE, 3),
    "vgg": vgg.vgg(vgg.Variant((1, 1), "bn", (4, 8), hidden=0), SHAPE, 3),
}
DEEPER = {
    "vgg with hidden layers": vgg.vgg(vgg.Variant((1, 1), "bn", (4, 8), hidden=16), SHAPE, 3),
    "one pixel": resnet.resnet(resnet.Variant((1, 1, 1, 1), False), SHAPE, 3, width=8),
}


def close(found, expected):
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=tolerance)


def run(network, variables, images=IMAGES, train=False):
    return jax.jit(lambda v, x: features(network, v, x, train))(variables, images)


def started(program):
    """Parameters with a head that is not zero, and statistics."""
    params = initial_parameters(program, jax.random.key(0))
    head = params[program.head]
    head["kernel"] = jax.random.normal(jax.random.key(1), head["kernel"].shape)
    return {"params": params, "batch_stats": initial_statistics(program)}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_the_head_on_the_features_gives_the_logits(name, train):
    network = Network(LINEAR[name])
    variables = started(network.program)
    logits, state = jax.jit(
        lambda x: network.apply(variables, x, train=train, mutable=["batch_stats"])
    )(IMAGES)
    found = run(network, variables, train=train)
    head = variables["params"][network.program.head]
    expected = found.pooled @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(expected, logits, rtol=1e-4, atol=1e-4)
    wanted = state.get("batch_stats", {})
    jax.tree.map(close, found.batch_stats, dict(wanted))


@pytest.mark.parametrize("name", DEEPER)
def test_features_of_other_heads_are_the_mean_of_the_last_map(name):
    network = Network(DEEPER[name])
    found = run(network, started(network.program))
    assert found.map.shape[1:] == network.program.shapes[-2]
    np.testing.assert_allclose(found.pooled, found.map.mean((1, 2)), rtol=1e-6)


def test_the_head_is_neither_needed_nor_among_the_encoders_parameters():
    program = LINEAR["bit"]
    variables = started(program)
    encoder = encoder_params(program, variables["params"])
    assert set(variables["params"]) - set(encoder) == {"head.fc"}
    assert list(encoder) == [name for name in program.parameter_shapes() if name != "head.fc"]
    expected = run(Network(program), variables)
    found = run(Network(program), {"params": encoder})
    np.testing.assert_array_equal(found.pooled, expected.pooled)
    # Layers before the last one belong to a head as well.
    deep = DEEPER["vgg with hidden layers"]
    assert not any("classifier" in name for name in encoder_params(deep, started(deep)["params"]))
    narrow = convnext.convnext(convnext.Variant((1, 1), (8, 16)), SHAPE, 3)
    held = encoder_params(narrow, initial_parameters(narrow, jax.random.key(0)))
    assert "classifier.0" not in held and "features.0.0" in held


def test_the_gradient_is_that_of_the_whole_network():
    """Of the mean of all logits, which is linear in the features."""
    network = Network(LINEAR["resnet"])
    variables = started(network.program)
    kernel = variables["params"]["fc"]["kernel"]

    def given(params):
        return {"params": params, "batch_stats": variables["batch_stats"]}

    def whole(params):
        return network.apply(given(params), IMAGES, train=True, mutable=["batch_stats"])[0].mean()

    def parts(params):
        return (features(network, given(params), jnp.asarray(IMAGES), True).pooled @ kernel).mean()

    expected = jax.jit(jax.grad(whole))(variables["params"])
    found = jax.jit(jax.grad(parts))(encoder_params(network.program, variables["params"]))
    for name, leaves in found.items():
        for leaf, value in leaves.items():
            np.testing.assert_allclose(value, expected[name][leaf], rtol=1e-3, atol=1e-5)
    assert max(float(jnp.abs(value).max()) for value in jax.tree.leaves(found)) > 1e-3


def test_frozen_statistics_and_the_compute_type_are_the_networks():
    program = LINEAR["resnet"]
    variables = started(program)
    network = Network(program, frozen=("layer1",))
    exact = run(network, variables, train=True)
    found = run(network.clone(dtype=jnp.bfloat16), variables, train=True)
    assert found.map.dtype == found.pooled.dtype == jnp.float32
    assert 1e-4 < float(jnp.abs(found.map - exact.map).max()) < 0.1 * float(exact.map.max())
    moved = {
        name
        for name, held in found.batch_stats.items()
        if float(jnp.abs(held["mean"] - variables["batch_stats"][name]["mean"]).max()) > 0
    }
    still = set(variables["batch_stats"]) - moved
    assert moved and still == {name for name in variables["batch_stats"] if "layer1." in name}


def test_a_convolutional_network_takes_images_of_other_sizes():
    network = Network(LINEAR["bit"])
    images = np.zeros((1, 48, 40, 3), np.float32)
    assert run(network, started(network.program), images).map.shape == (1, 24, 20, 64)


def test_a_segmentation_network_has_no_head_of_this_kind():
    network = Network(unet.unet(None, SHAPE, 2, width=4, levels=1))
    with pytest.raises(UsageError, match="no head that pools or flattens"):
        features(network, {"params": {}}, IMAGES)


@pytest.mark.torch
def test_the_last_stride_of_a_bit_network_is_timms(torch_error):
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnetv2_50x1_bit", num_classes=5)
    for module in (net.stages[3].blocks[0].conv2, net.stages[3].blocks[0].downsample.conv):
        assert module.stride == (2, 2)
        module.stride = (1, 1)
    program = bit.bit("resnetv2_50x1_bit", (64, 64, 3), 5, last_stride=1)
    assert torch_error(program, net) < 1e-4


def test_a_last_stride_of_one_doubles_the_last_map_and_keeps_the_parameters():
    for build, name, channels in (
        (bit.bit, "resnetv2_50x1_bit", 2048),
        (resnet.resnet, "resnet34", 512),
    ):
        plain, reduced = build(name, (448, 448, 3), 2), build(name, (448, 448, 3), 2, last_stride=1)
        assert plain.shapes[-2] == (14, 14, channels) and reduced.shapes[-2] == (28, 28, channels)
        assert plain.parameter_shapes() == reduced.parameter_shapes()
        assert {step.dilation for call in reduced.calls for step in call.block.steps} == {1}
        with pytest.raises(UsageError, match="last_stride is 1 or 2, got 4"):
            build(name, last_stride=4)


@pytest.fixture(scope="module")
def held():
    return swcl()


@pytest.mark.parametrize(
    ("model", "name", "rename"),
    [
        ("swcl50x1", "resnetv2_50x1_bit", classifier(bit_name)),
        ("resnet18", "resnet18", classifier(resnet_name)),
    ],
)
def test_features_are_the_authors(model, name, rename, held):
    network = zoo.build(name, 1, (64, 64, 3))
    params, statistics = loaded(network.program, encoder_state(state_of(model)), rename)
    images = held["net_x"].transpose(0, 2, 3, 1)
    variables = {"params": params, "batch_stats": statistics}
    found = run(network, variables, images)
    close(found.map, held[f"net_{model}_feat"].transpose(0, 2, 3, 1))
    if model == "swcl50x1":
        # After the stem and the first stage, before any norm follows.
        shallow = network.clone(program=Program(network.program.calls[:4], (64, 64, 3)))
        low = jax.jit(lambda x: shallow.apply(variables, x))(images)
        close(low, held["net_swcl50x1_low"].transpose(0, 2, 3, 1))


def test_the_labeler_in_training_is_the_authors(held):
    network = zoo.build("resnet34", 2, (64, 64, 3), last_stride=1)
    state = state_of("labeler34rs")
    params, statistics = loaded(
        network.program, state, classifier(resnet_name), ["out.classification.0"]
    )
    images = held["net_x"].transpose(0, 2, 3, 1)
    variables = {"params": params, "batch_stats": statistics}
    last = run(network, variables, images).map
    close(last, held["net_labeler34rs_feat"].transpose(0, 2, 3, 1))
    logits, moved = jax.jit(
        lambda x: network.apply(variables, x, train=True, mutable=["batch_stats"])
    )(images)
    close(logits, held["net_labeler34rs_train_logits"])
    mean = moved["batch_stats"]["layer4.1.bn2.stats"]["mean"]
    close(mean, held["net_labeler34rs_train_layer4_1_bn2_rm"])
    own = run(network, variables, images, train=True)
    jax.tree.map(close, own.batch_stats, dict(moved["batch_stats"]))
