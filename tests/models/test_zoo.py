"""Networks by name."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import medinit_jax
from medinit_jax.api import Initializer
from medinit_jax.arch.space import get_space
from medinit_jax.arch.tape import Tape
from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parallel import Parallel
from medinit_jax.hyper.hypernetwork import from_config
from medinit_jax.hyper.starts import untrained_theta
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


CLASSES, BATCH, STEPS, RATE = 3, 6, 50, 0.01


@pytest.fixture(scope="module")
def initializer():
    """The hypernetwork of `configs/hyper.py:mixed`, which knows all node types, untrained."""
    config = Path(__file__).resolve().parents[2] / "configs" / "hyper.py"
    command = read_command_line(["test", f"--config={config}:mixed"])
    module = from_config({**command.config.hyper, "num_classes": 4})
    theta = jax.device_get(untrained_theta(module, command.config.seed))
    return Initializer(module, theta, {}, "")


def cross_entropy(logits, targets):
    """Mean over images and, in segmentation, positions; no accuracy."""
    targets = jnp.broadcast_to(targets.reshape(-1, *[1] * (logits.ndim - 2)), logits.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(), jnp.zeros(())


@jax.jit
def descend(params, gradient):
    """One step of SGD; gradients longer than 1 are clipped."""
    rate = RATE / jnp.maximum(1.0, optax.tree.norm(gradient))
    return jax.tree.map(lambda p, g: p - rate * g, params, gradient)


def losses_of_training(program, params, images):
    """Returns the loss before every step and after the last, on one batch with its statistics."""
    parallel = Parallel(jax.devices()[:1])
    tape = Tape(parallel, BATCH, cross_entropy)
    params, images, targets = (
        parallel.copy(params),
        *parallel.shard((images, np.arange(BATCH, dtype=np.int32) % CLASSES)),
    )
    losses = []
    for _ in range(STEPS):
        loss, _, gradient = tape.loss_and_gradient(program, params, images, targets)
        params = descend(params, gradient)
        losses.append(float(loss))
    return [*losses, float(tape.loss(program, params, images, targets)[0])]


def check_start(name, size, initializer, spreads, images):
    """Checks spread and training from both starts and prints a row of docs/results.md.

    Labels are balanced: a network that cannot tell the images apart does not fall below ln 3.
    """
    network = zoo.build(name, CLASSES, (size, size, 3))
    batch = images(BATCH, (size, size, 3))
    cells, found, losses = [name, size], {}, []
    for start, share in (("own", 0.0), ("predicted", 1.0)):
        params = medinit_jax.initialize(
            network, batch, initializer, depth_fraction=share, quiet=True
        )["params"]
        spread = spreads(network.program, params, batch)
        loss = losses_of_training(network.program, params, batch)
        low, high = min(spread.values()), max(spread.values())
        cells += [f"{low:.2g} to {high:.2g}", f"{loss[0]:.3f} to {loss[-1]:.3f}"]
        found |= {(start, *place): value for place, value in spread.items()}
        losses.append(loss)
    print("|", " | ".join(map(str, cells)), "|", flush=True)
    assert {place: s for place, s in found.items() if not 1e-3 < s < 1e3} == {}
    for loss in losses:
        assert np.isfinite(loss).all() and loss[-1] < min(loss[0], math.log(CLASSES)), loss


@pytest.mark.parametrize("name", ["resnet18"])
def test_spread_and_training(name, initializer, spreads, images):
    check_start(name, 32, initializer, spreads, images)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.MODELS)
def test_spread_and_training_of_every_network(name, initializer, spreads, images):
    # The classic U-Net works at full size on many channels.
    check_start(name, 32 if name == "unet" else 64, initializer, spreads, images)


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
