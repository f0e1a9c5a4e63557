"""Figures of the methods: what tells of a collapse must not depend on how the loss is scaled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.core.parallel import Parallel
from medinit_jax.swcl.methods import Contrastive, Dino, Seen

IMAGES, CHANNELS, PROTOTYPES = 8, 6, 8


def seen(pooled, target=None, memory=()):
    return Seen(pooled, target, {}, jnp.asarray(0), jnp.asarray(0.0), memory)


def unit(head, rows):
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)


def judged(method, pooled, apply=unit, **more):
    parallel = Parallel(jax.devices()[:1])
    run = jax.jit(lambda x: method.judge(apply, apply, seen(x, **more), parallel))
    return run(pooled)


@pytest.fixture
def pooled():
    return jax.random.normal(jax.random.key(0), (IMAGES, 2, CHANNELS))


@pytest.mark.parametrize(
    "options", [{"reduction": "sum"}, {"base_temperature": 0.07}, {"base_temperature": 1.0}]
)
def test_the_distance_from_a_collapse_knows_no_scale(pooled, options):
    plain = judged(Contrastive(False), pooled)
    scaled = judged(Contrastive(False, **options), pooled)
    assert float(scaled.loss) != pytest.approx(float(plain.loss), rel=0.1)
    distance = float(plain.figures["collapse_distance"])
    assert distance > 0.1
    assert float(scaled.figures["collapse_distance"]) == pytest.approx(distance, rel=1e-4)
    one = jnp.ones_like(pooled)
    collapsed = judged(Contrastive(False, **options), one).figures
    assert float(collapsed["collapse_distance"]) < 1e-4 and float(collapsed["spread"]) < 1e-4


def test_the_spread_is_one_of_uniform_directions_and_none_of_one():
    rows = jax.random.normal(jax.random.key(1), (256, 2, 64))
    assert float(judged(Contrastive(False), rows).figures["spread"]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("logits", "entropy", "information"),
    [
        # All prototypes alike; always the same one; one of eight, each equally often.
        (np.zeros((IMAGES, PROTOTYPES)), np.log(8), 0),
        (np.tile(10 * np.eye(PROTOTYPES)[0], (IMAGES, 1)), 0, 0),
        (10 * np.eye(PROTOTYPES), 0, np.log(8)),
    ],
)
def test_the_teachers_information_tells_both_collapses(logits, entropy, information):
    rows = jnp.asarray(np.repeat(logits[:, None], 2, 1), jnp.float32)
    found = judged(
        Dino(PROTOTYPES), rows, lambda head, x: x, target=rows, memory=jnp.zeros(PROTOTYPES)
    ).figures
    assert float(found["teacher_entropy"]) == pytest.approx(entropy, abs=1e-4)
    assert float(found["teacher_information"]) == pytest.approx(information, abs=1e-4)
