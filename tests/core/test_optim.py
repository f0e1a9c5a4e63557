import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from oracles import swcl

from medinit_jax.core import optim
from medinit_jax.core.errors import UsageError


def make_config(**changes):
    values = {
        "name": "sgd",
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "clip": 0.0,
        "warmup_steps": 0,
        "schedule": "constant",
        "total_steps": 10,
    }
    return ConfigDict(values | changes)


def one_step(config, params, gradient):
    optimizer, _ = optim.create(config)
    params = jnp.asarray(params)
    updates, _ = optimizer.update(jnp.asarray(gradient), optimizer.init(params), params)
    return np.asarray(optax.apply_updates(params, updates))


def test_cosine_falls_from_the_peak_to_zero_after_a_linear_warmup():
    config = make_config(schedule="cosine", warmup_steps=2, total_steps=6, learning_rate=0.8)
    schedule = optim.create_schedule(config)
    # Warm-up 0, 0.4; then 0.8 * (1 + cos(pi * t / 4)) / 2 for t = 0..4.
    expected = [0.0, 0.4, 0.8, 0.4 * (1 + 2**-0.5), 0.4, 0.4 * (1 - 2**-0.5), 0.0]
    np.testing.assert_allclose([schedule(i) for i in range(7)], expected, atol=1e-7)


def test_constant_stays():
    schedule = optim.create_schedule(make_config(learning_rate=0.3))
    np.testing.assert_allclose([schedule(0), schedule(9), schedule(99)], 0.3, rtol=1e-6)


def test_first_sgd_step_with_decay_and_clip():
    config = make_config(weight_decay=0.5, clip=1.0)
    # The gradient (3, 4) has norm 5 and is clipped to (0.6, 0.8); decay adds 0.5 * (1, -1).
    new = one_step(config, [1.0, -1.0], [3.0, 4.0])
    np.testing.assert_allclose(new, [1 - 0.1 * 1.1, -1 - 0.1 * 0.3], rtol=1e-6)


def test_sgd_has_momentum():
    optimizer, _ = optim.create(make_config())
    params = jnp.zeros(())
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(jnp.ones(()), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, -0.1 * (1 + 1.9), rtol=1e-6)


def test_adamw_decays_beside_the_moments_and_adam_within():
    # Adam's first update is the sign of its gradient.
    decoupled = one_step(make_config(name="adamw", weight_decay=0.5), [2.0], [0.25])
    coupled = one_step(make_config(name="adam", weight_decay=0.5), [2.0], [-0.25])
    np.testing.assert_allclose(decoupled, [2 - 0.1 * (1 + 0.5 * 2)], rtol=1e-5)
    np.testing.assert_allclose(coupled, [2 - 0.1], rtol=1e-5)


def test_decay_mask_leaves_the_rest_alone():
    optimizer, _ = optim.create(
        make_config(weight_decay=1.0), lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    )
    params = {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1)
    np.testing.assert_allclose(updates["bias"], 0.0)


def test_weight_decay_goes_along_a_cosine_as_in_dino():
    config = make_config(weight_decay=0.04, weight_decay_end=0.4, total_steps=4, warmup_steps=2)
    decay = optim.create_decay(config)
    # 0.4 - 0.18 * (1 + cos(pi * t / 4)) for t = 0..4; the warm-up of the rate leaves it alone.
    expected = [0.04, 0.4 - 0.18 * (1 + 2**-0.5), 0.22, 0.4 - 0.18 * (1 - 2**-0.5), 0.4, 0.4]
    np.testing.assert_allclose([decay(i) for i in range(6)], expected, rtol=1e-6)
    assert optim.create_decay(make_config(weight_decay=0.04)) == 0.04


@pytest.mark.parametrize(("first", "name"), [(0.5, "adamw"), (0.0, "adamw"), (0.5, "sgd")])
def test_every_update_has_its_own_decay(first, name):
    """Without a gradient an update is rate times decay times the parameter."""
    plain = {"momentum": 0.0} if name == "sgd" else {}
    config = make_config(
        name=name, weight_decay=first, weight_decay_end=1.0, total_steps=2, **plain
    )
    optimizer, _ = optim.create(config, lambda params: {"kernel": True, "bias": False})
    params = {"kernel": jnp.ones(()), "bias": jnp.ones(())}
    state = optimizer.init(params)
    for decay in (first, (first + 1) / 2, 1.0):
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
        np.testing.assert_allclose(updates["kernel"], -0.1 * decay, rtol=1e-6, atol=1e-8)
        assert updates["bias"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "lion"}, ["name='lion'", "adamw"]),
        ({"schedule": "poly"}, ["schedule='poly'", "cosine", "step"]),
        ({"schedule": "step"}, ["milestones", "decay"]),
        ({"schedule": "step", "milestones": (4,), "decay": 0.0}, ["decay=0.0"]),
        ({"warmup_steps": 10}, ["warmup_steps=10", "total_steps=10"]),
        ({"total_steps": 0}, ["total_steps=0"]),
        (
            {"name": "adamw", "nesterov": True},
            ["optim.nesterov", "name=adamw", "at False", "=sgd"],
        ),
        ({"name": "adam", "momentum": 0.5}, ["optim.momentum", "name=adam;", "at 0.9"]),
        ({"milestones": (4,)}, ["optim.milestones", "schedule=constant", "at ()", "=step"]),
        ({"schedule": "cosine", "decay": 0.5}, ["optim.decay", "schedule=cosine", "at 0.1"]),
        ({"weight_decay": -0.1}, ["weight_decay=-0.1", "at least 0"]),
        ({"weight_decay_end": -0.1}, ["weight_decay_end=-0.1", "at least 0"]),
    ],
)
def test_a_wrong_value_is_named(change, words):
    with pytest.raises(UsageError) as caught:
        optim.create(make_config(**change))
    assert all(word in str(caught.value) for word in words)


def test_settings_that_are_left_as_they_are_may_stand_beside_any_optimizer():
    unread = {"momentum": 0.9, "nesterov": False, "milestones": [], "decay": 0.1}
    optim.create(make_config(name="adamw", **unread))


@pytest.fixture(scope="module")
def held():
    return swcl()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (
            "sgd_nesterov",
            {"momentum": 0.9, "nesterov": True, "learning_rate": 0.1, "weight_decay": 0.01},
        ),
        ("sgd_mom", {"momentum": 0.9, "learning_rate": 0.1, "weight_decay": 0.01}),
        ("adamw", {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1}),
    ],
)
def test_trajectories_are_those_of_pytorch(held, name, changes):
    optimizer, _ = optim.create(make_config(**changes))
    params = jnp.asarray(held["opt_w0"])
    state = optimizer.init(params)
    found = []
    for gradient in held["opt_grads"]:
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        found.append(np.asarray(params))
    np.testing.assert_allclose(found, held[f"opt_{name}_traj"], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("lr_cos_w5_t20", {"schedule": "cosine", "warmup_steps": 5, "total_steps": 20}),
        ("lr_cos_w0_t20", {"schedule": "cosine", "total_steps": 20}),
        (
            "lr_step_w2_m4_8_f01",
            {
                "schedule": "step",
                "warmup_steps": 2,
                "total_steps": 12,
                "milestones": (4, 8),
                "decay": 0.1,
            },
        ),
    ],
)
def test_schedules_are_those_of_the_reference(held, name, changes):
    schedule = optim.create_schedule(make_config(learning_rate=1.0, **changes))
    expected = held[name]
    found = [schedule(step) for step in range(len(expected))]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_momentum_of_zero_is_plain_descent():
    optimizer, _ = optim.create(make_config(momentum=0.0))
    state = optimizer.init(jnp.zeros(()))
    for _ in range(2):
        updates, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        np.testing.assert_allclose(updates, -0.1, rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_first_update_of_a_warm_up_moves_nothing(name):
    """SWCL's code begins at a rate of 0, and reaches the peak after as many updates as stated."""
    config = make_config(
        name=name, schedule="cosine", warmup_steps=4, weight_decay=0.1, nesterov=name == "sgd"
    )
    optimizer, schedule = optim.create(config)
    params = jnp.array([1.0, -2.0])
    state = optimizer.init(params)
    moved = []
    for _ in range(2):
        updates, state = optimizer.update(jnp.array([0.5, -0.5]), state, params)
        moved.append(float(jnp.abs(updates).max()))
    assert moved[0] == 0 and moved[1] > 0
    np.testing.assert_allclose([schedule(i) for i in (0, 1, 4)], [0, 0.025, 0.1], atol=1e-8)
