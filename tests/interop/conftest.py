"""A small untrained initializer."""

import jax
import pytest

from medinit_jax.api import Initializer
from medinit_jax.arch.vocabulary import NODE_TYPES
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta


@pytest.fixture(scope="session")
def initializer():
    module = HyperInitializer(
        hidden=8, max_shape=(8, 8, 3, 3), num_classes=4, node_types=len(NODE_TYPES)
    )
    theta = jax.device_get(init_theta(module, jax.random.key(2))["params"])
    return Initializer(module, theta, {}, "")
