"""The losses of pretexts: by hand, at chance, by group, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ramps import key

from medinit_jax.hyper.pretext import PRETEXTS
from medinit_jax.hyper.pretexts.contrast import compared
from medinit_jax.hyper.pretexts.perceptron import REFERENCE, draw
from medinit_jax.hyper.pretexts.task import Seen
from medinit_jax.hyper.pretexts.weak import WeakLabels

GROUP, WIDTH, SIZE = 16, 12, 16
FACTS = {
    "label": jnp.arange(32, dtype=jnp.int32) % 2,
    "patient": jnp.arange(32, dtype=jnp.int32),
}


def asked(name, features=None, seed=0):
    """A pretext and what it gets of two groups of its views."""
    task, random = PRETEXTS[name](), np.random.default_rng(seed)
    count = 2 * GROUP // task.copies
    images = jnp.asarray(random.normal(size=(count, SIZE, SIZE, 3)), jnp.float32)
    _, targets = task.views(images, key(), {k: v[:count] for k, v in FACTS.items()}, GROUP)
    if features is None:
        features = jnp.asarray(random.normal(size=(2 * GROUP, WIDTH)), jnp.float32)
    classes = max(task.classes, 2)
    logits = features[:, :classes]
    return task, Seen(features, logits, targets, task.head(key(), WIDTH), GROUP)


@pytest.mark.parametrize("name", PRETEXTS)
def test_features_that_say_nothing_are_at_chance(name):
    task, seen = asked(name, jnp.zeros((2 * GROUP, WIDTH)))
    loss, _ = task.judge(seen)
    np.testing.assert_allclose(loss, task.chance(GROUP)[0], rtol=1e-5)
    assert 0 < task.chance(GROUP)[1] <= 0.5
    assert task.check(GROUP) == ""


@pytest.mark.parametrize("name", PRETEXTS)
def test_groups_count_alike_and_do_not_mix(name):
    """Other features in the second group leave the first group's part of the loss as it was."""
    task, seen = asked(name)
    first, second = (
        jax.tree.map(lambda x, g=g: x[g * GROUP : (g + 1) * GROUP], seen.targets) for g in (0, 1)
    )
    halves = [
        task.judge(seen._replace(features=seen.features[rows], logits=seen.logits[rows],
                                 targets=targets))
        for rows, targets in ((slice(GROUP), first), (slice(GROUP, None), second))
    ]  # fmt: skip
    np.testing.assert_allclose(task.judge(seen), np.mean(halves, axis=0), rtol=1e-5)
    assert abs(float(halves[0][0] - halves[1][0])) > 1e-4


@pytest.mark.parametrize("name", PRETEXTS)
def test_gradients_are_those_of_differences_and_jit_changes_nothing(name):
    with jax.enable_x64(True):
        task, seen = asked(name)
        double = jax.tree.map(lambda x: x.astype(jnp.float64), (seen.features, seen.head))

        def loss(features, head):
            logits = features[:, : seen.logits.shape[1]]
            return task.judge(seen._replace(features=features, head=head, logits=logits))[0]

        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(*double)
        np.testing.assert_allclose(value, loss(*double), rtol=1e-12)
        way = jax.tree.map(jnp.sign, gradients)
        step = 1e-6
        ahead, behind = (
            loss(*jax.tree.map(lambda x, w, s=s: x + s * step * w, double, way)) for s in (1, -1)
        )
        expected = sum(jnp.abs(g).sum() for g in jax.tree.leaves(gradients))
        np.testing.assert_allclose((ahead - behind) / (2 * step), expected, rtol=1e-4)
        assert expected > 0


def test_contrast_is_nt_xent_by_hand():
    rows = np.random.default_rng(0).normal(size=(2, 6, 5))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    losses, hits = [], []
    for group in rows:
        for i in range(6):
            twin, others = i ^ 1, [k for k in range(6) if k != i]
            cosines = np.array([group[i] @ group[k] for k in others]) / 0.5
            losses.append(np.log(np.exp(cosines).sum()) - group[i] @ group[twin] / 0.5)
            hits.append(others[int(np.argmax(cosines))] == twin)
    columns = jnp.tile(jnp.arange(3, dtype=jnp.int32), 2)[:, None]
    flat = jnp.asarray(rows.reshape(12, 5), jnp.float32)
    loss, score = compared(flat, columns, 6, 0.5)
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    np.testing.assert_allclose(score, np.mean(hits), rtol=1e-6)


def test_alike_patches_are_those_with_equal_columns():
    """Vectors that are equal where labels are: the score is 1, and the loss its least value."""
    columns = jnp.array([[0, 1], [1, 1], [0, 1], [1, 2]], jnp.int32)
    kinds = np.array([0, 1, 0, 2])
    z = jnp.asarray(np.repeat(np.eye(3)[kinds], 2, axis=0), jnp.float32)
    loss, score = compared(z, columns, 8, 1.0)
    assert score == 1.0
    # Of seven others, 3 are alike for the first kind, 1 for the others.
    alone, four = np.log(np.e + 6) - 1, np.log(3 * np.e + 4) - 1
    np.testing.assert_allclose(loss, (alone + four) / 2, rtol=1e-6)


def test_images_without_label_count_nothing():
    task = WeakLabels(answer="predicted")
    logits = jnp.log(jnp.array([[1.0, 3], [1, 1], [9, 1], [2, 2]]))
    targets = jnp.array([1, -1, 0, -1], jnp.int32)
    seen = Seen(jnp.zeros((4, 3)), logits, targets, {}, 2)
    loss, score = task.judge(seen)
    np.testing.assert_allclose(loss, -(np.log(0.75) + np.log(0.9)) / 2, rtol=1e-6)
    assert score == 1.0 and task.head(key(), 5) == {}
    nothing = seen._replace(targets=jnp.full(4, -1, jnp.int32))
    assert task.judge(nothing)[0] == 0.0


def test_heads_start_at_variance_one():
    head = draw(key(), 4096, 256, 256)
    features = jnp.asarray(np.random.default_rng(0).normal(size=(64, 4096)), jnp.float32)
    hidden = features * (REFERENCE / 4096) ** 0.5 @ head["in"]["kernel"]
    assert 0.9 < float(hidden.std()) < 1.1
    assert not head["in"]["bias"].any() and not head["out"]["bias"].any()
