"""Fine-tuning on a toy set that is separable by color."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.arch.program import BlockBuilder, ProgramBuilder
from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.classify import (
    CHANCE_AUC,
    Budget,
    Labeled,
    Task,
    auc,
    cosine,
    fine_tune,
    outputs,
)
from medinit_jax.models.network import Network, feature_taps
from medinit_jax.models.statistics import initial_statistics


def network(classes=2):
    build = ProgramBuilder((8, 8, 3))
    b = BlockBuilder(1)
    b("relu", b("batch_norm", b.conv(0, "conv", 4, 3, stride=2), name="bn"))
    value = build(b.build(), (0,), "stem")
    b = BlockBuilder(1)
    b("dense", b("global_pool", 0), name="fc", features=classes, bias=True)
    build(b.build(), (value,), "head")
    return Network(build.build())


def toy(count, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 2
    images = rng.normal(size=(count, 8, 8, 3)).astype(np.float32)
    images[..., 0] += labels[:, None, None].astype(np.float32)
    return Labeled(images, labels)


@pytest.fixture(scope="module")
def task():
    return Task(toy(40, 0), toy(30, 1), toy(35, 2))


@pytest.fixture(scope="module")
def params():
    return network().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]


BUDGET = Budget(epochs=5, batch=16, min_steps=4)


def test_learns_what_is_separable_and_repeats_itself(task, params):
    course = fine_tune(network(), params, task, BUDGET, 0.1, seed=1)
    assert course.loss[-1] is not None and course.loss[0] is not None
    assert course.loss[-1] < course.loss[0]
    assert course.test_auc[-1] > 0.9 and course.val_auc[-1] > 0.9
    assert len(course.test_auc) == len(course.val_auc) == BUDGET.epochs
    assert not course.diverged
    assert fine_tune(network(), params, task, BUDGET, 0.1, seed=1) == course
    assert fine_tune(network(), params, task, BUDGET, 0.1, seed=2) != course


def test_divergence_counts_as_chance(task, params):
    course = fine_tune(network(), params, task, BUDGET, 1e30, seed=1)
    assert course.diverged and course.test_auc[-1] == CHANCE_AUC


def test_running_statistics_are_used_once_enough_steps_are_done(task, params):
    late = Budget(epochs=1, batch=16, min_steps=4, recalibrate_steps=0)
    early = Budget(epochs=1, batch=16, min_steps=4)
    a = fine_tune(network(), params, task, late, 0.01, seed=1)
    b = fine_tune(network(), params, task, early, 0.01, seed=1)
    assert a.loss == b.loss and a.test_auc != b.test_auc


def test_labels_beyond_the_head_are_an_error(task, params):
    wrong = task._replace(val=Labeled(task.val.images, task.val.labels + 1))
    with pytest.raises(UsageError, match="2 classes"):
        fine_tune(network(), params, wrong, BUDGET, 0.1, seed=1)


def test_outputs_are_the_networks_own_whatever_the_batch(params):
    net, images = network(), toy(7, 5).images
    statistics = initial_statistics(net.program)
    taps = feature_taps(net.program)
    features, logits = outputs(net, params, statistics, images, taps, batch=3)
    variables = {"params": params, "batch_stats": statistics}
    np.testing.assert_allclose(logits, net.apply(variables, images), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        features, net.apply(variables, images, taps=taps)[0], rtol=1e-5, atol=1e-6
    )


def test_auc_of_three_classes_is_the_mean_over_classes():
    labels = np.array([0, 0, 1, 1, 2, 2])
    assert auc(labels, np.eye(3)[labels]) == 1.0
    assert auc(labels, np.zeros((6, 3))) == 0.5
    # Class 0 stands out and 1 and 2 are alike: (1 + 3/4 + 3/4) / 3 by counting pairs.
    logits = np.where(labels[:, None] == 0, [[2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]])
    assert auc(labels, logits) == pytest.approx((1 + 0.75 + 0.75) / 3)


def test_cosine_starts_at_the_peak_and_ends_at_zero():
    assert cosine(0.4, 0, 10) == 0.4
    assert cosine(0.4, 5, 10) == pytest.approx(0.2)
    assert cosine(0.4, 10, 10) == pytest.approx(0.0)
