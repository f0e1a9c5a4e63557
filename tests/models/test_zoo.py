"""Networks by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medinit_jax.arch.space import get_space
from medinit_jax.core.errors import UsageError
from medinit_jax.models import zoo
from medinit_jax.models.ops import apply_block, batch_norm_over_groups


@pytest.mark.parametrize("name", zoo.MODELS)
def test_every_network_has_a_name(name):
    program = zoo.build(name, 3, (64, 64, 1)).program
    assert program.num_classes == 3 and program.input_shape == (64, 64, 1)
    segments = name.startswith(("unet", "deeplab"))
    assert program.shapes[-1] == ((64, 64, 3) if segments else (3,))
    small = zoo.by_name(name, 2, get_space("small")).program
    assert small.input_shape == (32, 32, 3) and small.num_classes == 2


@pytest.mark.parametrize("name", zoo.MODELS)
def test_bfloat16_stays_bfloat16_in_every_block(name):
    program = zoo.build(name, 3, (64, 64, 1)).program
    values = [jax.ShapeDtypeStruct((2, *program.input_shape), jnp.bfloat16)]
    for index, call in enumerate(program.calls):
        leaves = jax.tree.map(
            lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
            {name: dict(shapes) for name, shapes in program.layout(index).parameters.items()},
            is_leaf=lambda node: isinstance(node, tuple),
        )
        value = jax.eval_shape(
            lambda leaves, *inputs, block=call.block: apply_block(
                block, leaves, inputs, lambda _, x, p: batch_norm_over_groups(x, p, 2)
            ),
            leaves,
            *(values[i] for i in call.inputs),
        )
        assert value.dtype == jnp.bfloat16, call
        assert value.shape == (2, *program.shapes[index + 1])
        values.append(value)


def training_lowers_the_loss(name, size, batch):
    network = zoo.build(name, 3, (size, size, 3))
    random = np.random.default_rng(0)
    images = random.normal(size=(batch, size, size, 3)).astype(np.float32)
    labels = np.arange(batch) % 3
    variables = jax.jit(network.init)(jax.random.key(0), images)

    def loss(params, statistics):
        given = {"params": params, **statistics}
        logits, new = network.apply(given, images, train=True, mutable=["batch_stats"])
        wanted = labels.reshape(-1, *[1] * (logits.ndim - 2)) * np.ones(logits.shape[:-1], int)
        return optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean(), dict(new)

    @jax.jit
    def step(params, statistics):
        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(params, statistics)
        norm = optax.tree.norm(gradient)
        rate = 0.01 / jnp.maximum(1.0, norm)
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient), statistics, value

    params = variables.pop("params")
    losses = []
    for _ in range(50):
        params, variables, value = step(params, variables)
        losses.append(float(value))
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.9 * losses[0], losses


def test_training_lowers_the_loss():
    training_lowers_the_loss("resnet18", 32, 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.MODELS)
def test_training_lowers_the_loss_of_every_network(name):
    training_lowers_the_loss(name, 64, 6)


def test_small_images_have_small_stems():
    small, large = (
        zoo.build("regnet_y_400mf", 2, (32, 32, 3), stem=stem) for stem in ("small", "imagenet")
    )
    assert zoo.by_name("regnet_y_400mf", 2, get_space("small")) == small
    assert zoo.by_name("regnet_y_400mf:imagenet", 2, get_space("small")) == large
    assert small.program.shapes[1][0] == 2 * large.program.shapes[1][0]


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="no network 'resnet20': choose from resnet18"):
        zoo.build("resnet20", 2)
    with pytest.raises(UsageError, match="no network 'vgg11:small'"):
        zoo.by_name("vgg11:small", 2, get_space("small"))
    with pytest.raises(UsageError, match="no stem 'cifar'"):
        zoo.build("densenet121", 2, stem="cifar")
