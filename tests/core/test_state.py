import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from medinit_jax.core import optim
from medinit_jax.core import state as state_lib
from medinit_jax.core.parallel import Parallel


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


# Of w, the longest axis that four devices can share is the second; of odd there is none.
SHAPES = {"w": (3, 8, 6), "b": (16,), "odd": (5,)}


def training(devices, sharded, steps, dtype="float32"):
    """Returns the state after some steps on so many devices, the losses, and the step."""
    settings = {
        "name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1, "clip": 1.0,
        "warmup_steps": 2, "schedule": "cosine", "total_steps": 30, "sharded": sharded,
    }  # fmt: skip
    optimizer, _ = optim.create(ConfigDict(settings))
    parallel = Parallel(jax.devices()[:devices])
    divide = state_lib.divider(parallel, sharded)

    def step(state, x):
        def loss(params):
            hidden = jnp.tanh(x @ params["w"].reshape(24, 6)) * params["odd"].sum()
            return jnp.square(hidden - 1).mean() + jnp.square(params["b"] - x.mean()).sum()

        value, gradient = jax.value_and_grad(loss)(state.params)
        state, metrics = state_lib.apply_gradients(state, gradient, optimizer, value, divide)
        return state, value, metrics["skipped"]

    place = state_lib.places(parallel, sharded)
    everywhere = parallel.everywhere
    run = jax.jit(step, donate_argnums=0, out_shardings=(place, everywhere, everywhere))
    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=shape), dtype) for k, shape in SHAPES.items()}
    state = state_lib.place(state_lib.create(params, optimizer), parallel, sharded)
    losses = []
    for _ in range(steps):
        state, value, _ = run(state, parallel.spread(rng.normal(size=(8, 24)).astype(dtype)))
        losses.append(float(value))
    # One that is not finite leaves what is divided as it was, too.
    state, _, skipped = run(state, parallel.spread(np.full((8, 24), np.nan, dtype)))
    assert float(skipped) == 1
    return state, losses, run


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-8)])
@pytest.mark.parametrize("devices", [1, 4])
def test_a_divided_optimizer_trains_as_a_whole_one(dtype, tolerance, devices):
    with jax.enable_x64(dtype == "float64"):
        state, losses, _ = training(devices, True, 20, dtype)
        expected, wanted, _ = training(1, False, 20, dtype)
        assert len(set(wanted)) == 20 and int(state.skipped) == 1
        np.testing.assert_allclose(losses, wanted, rtol=tolerance)
        for a, b in zip(*map(jax.tree.leaves, (state, expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e3 * tolerance, atol=1e2 * tolerance)


def bytes_of_devices(tree):
    """Returns the bytes that each device holds of a tree, by the device's number."""
    found = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            found[shard.device.id] = found.get(shard.device.id, 0) + shard.data.nbytes
    return found


def test_each_device_holds_its_part_of_the_moments():
    state, _, run = training(4, True, 2)
    whole, _, _ = training(4, False, 2)
    # Two moments: 144 + 16 numbers in quarters, and 5 on each; two counts.
    assert set(bytes_of_devices(state.opt_state).values()) == {2 * 4 * (160 // 4 + 5) + 8}
    assert set(bytes_of_devices(whole.opt_state).values()) == {2 * 4 * (160 + 5) + 8}
    for tree in (state.params, whole.params):
        assert set(bytes_of_devices(tree).values()) == {4 * (160 + 5)}
    assert len(bytes_of_devices(state.opt_state)) == 4
    assert run._cache_size() == 1, "what a step leaves does not lie as what it took"


def test_what_lies_where_it_belongs_is_not_moved():
    parallel = Parallel()
    state, _, _ = training(4, True, 1)
    moved = state_lib.place(state, parallel, True)
    for a, b in zip(*map(jax.tree.leaves, (state, moved)), strict=True):
        assert a is b
    whole = state_lib.place(state, parallel)
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(whole))
    assert same(whole, state)
