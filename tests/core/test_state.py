import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from medinit_jax.core import optim
from medinit_jax.core import state as state_lib


def start():
    config = ConfigDict(
        {
            "name": "adam",
            "learning_rate": 0.1,
            "weight_decay": 0.0,
            "clip": 1.0,
            "warmup_steps": 0,
            "schedule": "cosine",
            "total_steps": 9,
        }
    )
    optimizer, _ = optim.create(config)
    return state_lib.create({"w": jnp.ones(3), "b": jnp.zeros(())}, optimizer), optimizer


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("jit", [False, True])
def test_a_finite_step_equals_plain_optax(jit):
    state, optimizer = start()
    gradients = {"w": jnp.array([3.0, 0.0, 4.0]), "b": jnp.array(12.0)}
    step = lambda s, g: state_lib.apply_gradients(s, g, optimizer, jnp.float32(1.0))  # noqa: E731
    new, metrics = (jax.jit(step) if jit else step)(state, gradients)
    updates, _ = optimizer.update(gradients, state.opt_state, state.params)
    expected = optax.apply_updates(state.params, updates)
    assert isinstance(expected, dict)
    np.testing.assert_allclose(new.params["w"], expected["w"], rtol=1e-6)
    assert int(new.step) == 1 and int(new.skipped) == 0
    assert float(metrics["grad_norm"]) == pytest.approx(13.0)  # 3-4-12-13
    assert float(metrics["skipped"]) == 0


@pytest.mark.parametrize(
    ("value", "loss"), [(np.nan, None), (np.inf, None), (1.0, np.nan), (1.0, np.inf)]
)
def test_a_step_that_is_not_finite_changes_counts_only(value, loss):
    state, optimizer = start()
    gradients = {"w": jnp.ones(3).at[1].set(value), "b": jnp.zeros(())}
    new, metrics = state_lib.apply_gradients(
        state, gradients, optimizer, None if loss is None else jnp.float32(loss)
    )
    assert same(new.params, state.params) and same(new.opt_state, state.opt_state)
    assert int(new.step) == 1 and int(new.skipped) == 1
    assert float(metrics["skipped"]) == 1


def test_after_a_skipped_step_training_goes_on_as_if_it_had_not_been():
    state, optimizer = start()
    good = {"w": jnp.ones(3), "b": jnp.ones(())}
    bad = {"w": jnp.full(3, jnp.nan), "b": jnp.ones(())}
    direct, _ = state_lib.apply_gradients(state, good, optimizer)
    detour, _ = state_lib.apply_gradients(state, bad, optimizer)
    detour, _ = state_lib.apply_gradients(detour, good, optimizer)
    assert same(direct.params, detour.params) and same(direct.opt_state, detour.opt_state)
