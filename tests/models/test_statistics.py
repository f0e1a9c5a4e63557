"""Re-estimated batch statistics against the obvious computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.arch.program import BlockBuilder, ProgramBuilder
from medinit_jax.models.network import Network
from medinit_jax.models.statistics import initial_statistics, recalibrate_bn


def program(norm=True):
    build = ProgramBuilder((4, 4, 3))
    b = BlockBuilder(1)
    y = b("batch_norm", 0, name="bn") if norm else b("relu", 0)
    b("dense", b("global_pool", y), name="fc", features=2, bias=True)
    build(b.build(), (0,))
    return build.build()


def test_one_batch_gives_its_own_mean_and_unbiased_variance():
    network = Network(program())
    images = np.random.default_rng(0).normal(2.0, 3.0, (6, 4, 4, 3)).astype(np.float32)
    variables = network.init(jax.random.key(0), jnp.asarray(images))
    found = recalibrate_bn(network, variables["params"], [images])
    assert jax.tree.structure(found) == jax.tree.structure(variables["batch_stats"])
    np.testing.assert_allclose(found["bn.stats"]["mean"], images.mean((0, 1, 2)), rtol=1e-5)
    wanted = images.var((0, 1, 2), ddof=1)
    np.testing.assert_allclose(found["bn.stats"]["var"], wanted, rtol=1e-5)


def test_batches_count_equally_up_to_the_limit():
    network = Network(program())
    images = np.random.default_rng(1).normal(size=(3, 6, 4, 4, 3)).astype(np.float32)
    params = network.init(jax.random.key(0), jnp.asarray(images[0]))["params"]
    found = recalibrate_bn(network, params, images, limit=2)
    wanted = images[:2].mean((0, 1, 2, 3))
    np.testing.assert_allclose(found["bn.stats"]["mean"], wanted, rtol=1e-4, atol=1e-6)


def test_initial_statistics_are_those_of_init():
    variables = Network(program()).init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)))
    jax.tree.map(
        np.testing.assert_array_equal, initial_statistics(program()), variables["batch_stats"]
    )


def test_a_network_without_norm_has_none_and_no_images_is_an_error():
    network = Network(program(norm=False))
    assert recalibrate_bn(network, {}, []) == {}
    with pytest.raises(ValueError, match="without images"):
        recalibrate_bn(Network(program()), {}, [])
