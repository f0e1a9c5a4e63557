"""Members of the families on the tape: skips, sequences, several norms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.arch.tape import Tape
from medinit_jax.core.parallel import Parallel
from medinit_jax.models import bit, regnet, resnet, unet, vit
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.network import Network, apply_with_batch_statistics
from medinit_jax.models.statistics import initial_statistics, recalibrate_bn

IMAGE = (8, 8, 3)
GROUP = 2
ENCODER = resnet.Variant((1,), False)
PROGRAMS = {
    "bit": lambda: bit.bit(bit.Variant((1,), 4), IMAGE, 4, "small"),
    "regnet": lambda: regnet.regnet(regnet.Variant(2, 8, 8.0, 2.0, 4, 0.25), IMAGE, 4, "small"),
    "unet": lambda: unet.unet(None, IMAGE, 4, width=4, levels=1),
    "unet on resnet": lambda: unet.unet(resnet.resnet(ENCODER, IMAGE, 1, "imagenet", 4), IMAGE, 4),
    "vit": lambda: vit.vit(vit.Variant(8, 1, 2, 4), IMAGE, 4),
}
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setattr(jax, "jit", functools.partial(jax.jit, compiler_options=QUICK))
    with jax.enable_x64(True):
        yield


def loss(logits, targets):
    """Cross-entropy of every place, and no accuracy."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)
    return -chosen.mean(), jnp.zeros((), logits.dtype)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_gradient_is_that_of_the_whole_program(wide, name):
    program = PROGRAMS[name]()
    random = np.random.default_rng(0)
    images = random.normal(size=(4, *IMAGE))
    targets = random.integers(0, 4, (4, *program.shapes[-1][:-1])).astype(np.int32)
    parameters = jax.tree.map(
        lambda leaf: jnp.asarray(leaf + 0.1 * random.normal(size=leaf.shape), jnp.float64),
        jax.device_get(initial_parameters(program, jax.random.key(0))),
    )

    @jax.jit
    @jax.value_and_grad
    def whole(parameters):
        logits = apply_with_batch_statistics(program, parameters, jnp.asarray(images), GROUP)
        return loss(logits, jnp.asarray(targets))[0]

    value, expected = whole(parameters)
    parallel = Parallel(jax.devices()[:1])
    tape = Tape(parallel, GROUP, loss, dtype=jnp.float64)
    views = parallel.shard((images, targets))
    own, _, gradient = tape.loss_and_gradient(program, parallel.copy(parameters), *views)
    assert float(own) == pytest.approx(float(value), rel=1e-12)
    assert gradient.keys() == expected.keys()
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    for module, leaves in expected.items():
        for leaf, other in leaves.items():
            assert float(jnp.abs(other).max()) > 1e-6 * largest, (module, leaf)
            np.testing.assert_allclose(gradient[module][leaf], other, rtol=0, atol=1e-10 * largest)


def test_statistics_of_a_segmentation_network():
    network = Network(PROGRAMS["unet"]())
    images = np.random.default_rng(0).normal(size=(4, *IMAGE)).astype(np.float32)
    params = initial_parameters(network.program, jax.random.key(0))
    found = recalibrate_bn(network, params, [images])
    assert jax.tree.structure(found) == jax.tree.structure(initial_statistics(network.program))
    logits = jax.jit(network.apply)({"params": params, "batch_stats": found}, images)
    assert logits.shape == (4, 8, 8, 4) and bool(jnp.isfinite(logits).all())
