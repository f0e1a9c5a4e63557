"""One update of a fine-tuning: the average of parameters against a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.downstream.heads import Head
from medinit_jax.finetune.step import Recipe, average_decay, compiled
from medinit_jax.models import resnet
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.network import Network
from medinit_jax.models.statistics import initial_statistics

PROGRAM = resnet.resnet(resnet.Variant((1,), False), (16, 16, 3), 2, "small", 4)
OPTIMIZER = {
    "name": "sgd",
    "weight_decay": 0.0,
    "momentum": 0.9,
    "nesterov": False,
    "clip": 0.0,
}


@pytest.mark.parametrize(
    ("step", "decay"), [(0, 0.1), (2, 0.25), (80, 0.9), (81, 0.9), (10**6, 0.9)]
)
def test_the_decay_warms_up(step, decay):
    assert float(average_decay(0.9, jnp.int32(step))) == pytest.approx(decay)


def test_the_average_soon_leaves_the_start():
    recipe = Recipe(
        Network(PROGRAM), (Head("sick", ("no", "yes")),), tuple(sorted(OPTIMIZER.items())), ema=0.9
    )
    begin, step = compiled(recipe)
    state = begin(initial_parameters(PROGRAM, jax.random.key(0)), initial_statistics(PROGRAM))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(4, 16, 16, 3)), jnp.float32)
    targets = {"sick": jnp.array([0, 1, 1, 0], jnp.int32)}
    expected = jax.device_get(state.average)
    for number in range(4):
        state, _ = step(state, images, targets, {}, np.float32(0.1), jax.random.key(number))
        decay, params = (1 + number) / (10 + number), jax.device_get(state.train.params)
        expected = jax.tree.map(
            lambda old, new, decay=decay: decay * old + (1 - decay) * new, expected, params
        )
    moved = 0
    for a, b, c in zip(
        *(jax.tree.leaves(x) for x in (state.judged, expected, params)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        moved += not np.allclose(a, c, rtol=1e-4)
    assert moved
