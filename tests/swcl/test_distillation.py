"""DINO and BYOL: against the reference code, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import swcl

from medinit_jax.core.errors import UsageError
from medinit_jax.swcl.distillation import (
    byol_loss,
    dino_center,
    dino_loss,
    ema,
    momentum,
    teacher_temperature,
)


@pytest.mark.parametrize("epoch", (0, 10, 30, 31))
def test_dino_is_the_references(epoch):
    held = swcl()
    temperature = teacher_temperature(epoch)
    np.testing.assert_allclose(temperature, held[f"dino_temp_ep{epoch}"], 1e-6)
    teachers = [held["dino_t1"], held["dino_t2"]]
    loss = jax.jit(
        jax.value_and_grad(lambda s: dino_loss(s, teachers, held["dino_center"], temperature))
    )
    value, gradients = loss([held["dino_s1"], held["dino_s2"]])
    np.testing.assert_allclose(value, held[f"dino_loss_ep{epoch}"], 1e-5)
    for number, gradient in enumerate(gradients, 1):
        wanted = held[f"dino_gs{number}_ep{epoch}"]
        np.testing.assert_allclose(gradient, wanted, 1e-5, 1e-6)


def test_center_is_the_references():
    held = swcl()
    center = dino_center(held["dino_center"], [held["dino_t1"], held["dino_t2"]])
    np.testing.assert_allclose(center, held["dino_newcenter"], 1e-5, 1e-7)


def test_small_views_of_the_student_meet_both_teachers():
    rng = np.random.default_rng(0)
    students = [jnp.asarray(rng.normal(size=(3, 5)), jnp.float32) for _ in range(4)]
    teachers = [jnp.asarray(rng.normal(size=(3, 5)), jnp.float32) for _ in range(2)]
    center = jnp.asarray(rng.normal(size=5), jnp.float32)

    def entropy(t, s):
        target = np.exp((teachers[t] - center) / 0.5)
        target /= target.sum(-1, keepdims=True)
        weight = np.exp(students[s] / 0.2)
        return -(target * np.log(weight / weight.sum(-1, keepdims=True))).sum(-1).mean()

    pairs = [(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]
    wanted = np.mean([entropy(t, s) for t, s in pairs])
    np.testing.assert_allclose(dino_loss(students, teachers, center, 0.5, 0.2), wanted, 1e-5)


def test_dino_stays_finite_where_the_log_of_a_softmax_does_not():
    scores = jnp.array([[0.0, 100]])
    value = dino_loss([scores, scores], [-scores, -scores], jnp.zeros(2), 1.0)
    np.testing.assert_allclose(value, 1000, 1e-5)


def test_a_collapsed_student_loses_the_log_of_the_outputs():
    flat = jnp.zeros((2, 4096))
    np.testing.assert_allclose(
        dino_loss([flat] * 2, [flat] * 2, jnp.zeros(4096), 0.04), 8.3178, 1e-4
    )


def test_no_gradient_reaches_a_teacher():
    x = jnp.ones((2, 3)) * jnp.arange(3.0)
    for loss in (
        lambda t: dino_loss([x, 2 * x], [t, t], jnp.ones(3), 0.04),
        lambda t: byol_loss((x, x + 1), (t, t)),
        lambda t: dino_center(jnp.ones(3), [t, t]).sum(),
    ):
        assert not np.any(jax.grad(loss)(x + 2))


def test_byol_is_the_references():
    held = swcl()
    targets = (held["byol_t1"], held["byol_t2"])
    loss = jax.jit(jax.value_and_grad(lambda p: byol_loss(p, targets)))
    value, gradients = loss((held["byol_p1"], held["byol_p2"]))
    np.testing.assert_allclose(value, held["byol_loss"], 1e-5)
    for gradient, wanted in zip(gradients, (held["byol_gp1"], held["byol_gp2"]), strict=True):
        np.testing.assert_allclose(gradient, wanted, 1e-5, 1e-6)


def test_byol_compares_across_views_whatever_the_length():
    a, b = jnp.array([[3.0, 0]]), jnp.array([[0, 0.1]])
    np.testing.assert_allclose(byol_loss((a, b), (5 * b, 7 * a)), 0, atol=1e-6)
    np.testing.assert_allclose(byol_loss((a, b), (a, b)), 4, 1e-6)
    np.testing.assert_allclose(byol_loss((a, a), (-a, -a)), 8, 1e-6)


def test_momentum_is_the_references():
    held = swcl()
    found = jax.jit(lambda k: momentum(k, 100))(held["ema_steps"].astype(np.int32))
    np.testing.assert_allclose(found, held["ema_vals"], 1e-6)


def test_ema_moves_a_share_of_the_way():
    teacher = {"w": jnp.array([1.0, 2]), "b": [jnp.array(4.0)]}
    student = {"w": jnp.array([3.0, 2]), "b": [jnp.array(0.0)]}
    moved = jax.jit(ema)(teacher, student, jnp.float32(0.75))
    np.testing.assert_allclose(moved["w"], [1.5, 2], 1e-6)
    np.testing.assert_allclose(moved["b"][0], 3, 1e-6)
    same = ema(teacher, student, 1.0)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), same, teacher))


def test_narrow_floats_are_compared_in_32_bits():
    x = (jnp.arange(12.0).reshape(3, 4) / 7).astype(jnp.bfloat16)
    center = jnp.ones(4)
    found = dino_loss([x, 2 * x], [x, 3 * x], center, 0.05)
    w = x.astype(jnp.float32)
    # Doubling and tripling round in bfloat16 alike on both sides.
    wide = [(2 * x).astype(jnp.float32), (3 * x).astype(jnp.float32)]
    assert found.dtype == jnp.float32
    assert float(found) == float(dino_loss([w, wide[0]], [w, wide[1]], center, 0.05))
    assert byol_loss((x, x), (x, x)).dtype == dino_center(center, [x]).dtype == jnp.float32


def test_errors_say_what_to_do():
    x = jnp.zeros((2, 3))
    with pytest.raises(UsageError, match="1 views of the student for 2 of the teacher; give"):
        dino_loss([x], [x, x], jnp.zeros(3), 0.04)
