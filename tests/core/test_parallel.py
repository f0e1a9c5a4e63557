"""Devices: each part of the work equals the same work on one device."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.core.parallel import Parallel, all_gather, all_sum, position, provide_threads


@pytest.fixture(params=[1, 4], ids=["1 device", "4 devices"])
def parallel(request):
    return Parallel(jax.devices()[: request.param])


def whole(parallel, x):
    """Undoes the device axis."""
    return np.asarray(x) if parallel.size == 1 else np.asarray(x).reshape(-1, *x.shape[2:])


BATCH = {
    "image": np.arange(48, dtype=np.float32).reshape(8, 2, 3),
    "target": np.arange(8, dtype=np.int32),
}


def test_all_local_devices_by_default():
    assert Parallel().devices == tuple(jax.local_devices()) and Parallel().size == 4


def test_shard_gives_each_device_consecutive_rows(parallel):
    sharded = parallel.shard(BATCH)
    for name, value in BATCH.items():
        assert sharded[name].dtype == value.dtype
        np.testing.assert_array_equal(whole(parallel, sharded[name]), value)
    assert sharded["target"].devices() == set(parallel.devices)
    if parallel.size > 1:
        assert sharded["image"].shape == (4, 2, 2, 3)
        for number, part in enumerate(sharded["target"].addressable_shards):
            assert part.device == parallel.devices[number]
            np.testing.assert_array_equal(part.data, [[2 * number, 2 * number + 1]])


def test_split_computes_on_whole_batches_and_shards_what_comes_out(parallel):
    mean = parallel.split(lambda batch: (batch["image"] - batch["image"].mean(), batch["target"]))
    image, target = mean(BATCH)
    np.testing.assert_allclose(whole(parallel, image), BATCH["image"] - BATCH["image"].mean())
    np.testing.assert_array_equal(whole(parallel, target), BATCH["target"])
    assert image.sharding == parallel.shard(BATCH)["image"].sharding or parallel.size == 1


def test_map_runs_on_every_part_by_itself(parallel):
    ranks = parallel.map(lambda x, y: {"sum": x + y, "mean": x.mean(0)})
    x = parallel.shard(BATCH["image"])
    result = ranks(x, x)
    np.testing.assert_array_equal(whole(parallel, result["sum"]), 2 * BATCH["image"])
    parts = BATCH["image"].reshape(parallel.size, -1, 2, 3).mean(1)
    own = np.asarray(result["mean"]).reshape(parts.shape)
    np.testing.assert_allclose(own, parts)


def test_copy_then_total_multiplies_by_the_devices(parallel):
    tree = {"a": jnp.arange(3.0), "b": {"c": jnp.float32(2)}}
    copied = parallel.copy(tree)
    assert copied["a"].shape == ((3,) if parallel.size == 1 else (4, 3))
    total = parallel.total(copied)
    np.testing.assert_array_equal(total["a"], parallel.size * np.arange(3.0))
    assert total["b"]["c"].shape == () and float(total["b"]["c"]) == 2 * parallel.size


def test_replicate_has_no_device_axis(parallel):
    state = parallel.replicate({"a": np.arange(3.0, dtype=np.float32)})
    assert state["a"].shape == (3,) and state["a"].devices() == set(parallel.devices)
    assert state["a"].is_fully_replicated


def test_gradient_of_the_mean_loss_is_that_of_one_device(parallel):
    """The use that training makes of it: copies in, parts out, one sum."""
    w = jnp.linspace(-1, 1, 3, dtype=jnp.float32)

    def loss(w, x):
        return jnp.square(x @ w).mean()

    x = BATCH["image"][:, 0] / 10
    part = parallel.map(jax.grad(lambda w, x: loss(w, x) / parallel.size))
    gradient = parallel.total(part(parallel.copy(w), parallel.shard(x)))
    np.testing.assert_allclose(gradient, jax.grad(loss)(w, x), rtol=1e-5)


@pytest.mark.parametrize(("batch", "group"), [(32, 8), (32, 4), (64, 16), (4, 1)])
def test_batches_that_fit(batch, group):
    Parallel().check_batch(batch, group)


@pytest.mark.parametrize(
    ("batch", "group", "devices", "multiple"),
    [(30, 8, 1, 8), (32, 16, 4, 64), (8, 16, 1, 16), (36, 4, 4, 16)],
)
def test_a_batch_that_does_not_fit_is_one_sentence(batch, group, devices, multiple):
    with pytest.raises(UsageError) as caught:
        Parallel(jax.devices()[:devices]).check_batch(batch, group)
    message = str(caught.value)
    assert f"batch_size={batch} " in message and f"bn_group={group} " in message
    assert f"{devices} device(s)" in message and f"a multiple of {multiple} " in message
    assert "\n" not in message


def test_sharded_gathers_adds_and_numbers(parallel):
    rows = np.arange(8, dtype=np.float32)

    def function(x):
        everything = all_gather({"x": x})["x"]
        part = everything[position() * x.shape[0] + jnp.arange(x.shape[0])]
        return all_sum({"own": (part == x).sum(), "sum": everything.sum() + 0 * x.sum()})

    found = jax.jit(parallel.sharded(function))(rows)
    assert int(found["own"]) == 8 and float(found["sum"]) == 28 * parallel.size


def test_gradient_through_sharded_is_that_of_the_whole(parallel):
    """Every row meets the sum of all rows: the slope of (sum x)^2 is 2 sum x."""
    rows = np.arange(8, dtype=np.float32)
    square = parallel.sharded(lambda x: all_sum((x * all_gather(x).sum()).sum()))
    value, gradient = jax.jit(jax.value_and_grad(square))(rows)
    assert float(value) == 28**2
    np.testing.assert_allclose(gradient, np.full(8, 56.0))


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=200"}, "800"),
        ({"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "300"}, "1200"),
        ({"JAX_NUM_CPU_DEVICES": "300", "PJRT_NPROC": "7"}, "7"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, None),
        ({}, None),
    ],
)
def test_only_virtual_devices_are_given_threads(environment, threads):
    provide_threads(environment)
    assert environment.get("PJRT_NPROC") == threads


def test_many_steps_in_flight_do_not_stand_still():
    """With a thread a device and no more, the reductions wait for each other for good."""
    environment = {k: v for k, v in os.environ.items() if k != "PJRT_NPROC"} | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4"
        " --xla_cpu_collective_call_terminate_timeout_seconds=25"
    }
    command = [sys.executable, "-c", _IN_FLIGHT]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "done", done.stderr[-2000:]


_IN_FLIGHT = """
import jax.numpy as jnp
from medinit_jax.core.parallel import Parallel, provide_threads

provide_threads()
parallel = Parallel()
step = parallel.map(lambda x, w: jnp.tanh(x @ w))
x = w = parallel.copy(jnp.full((64, 64), 0.01))
for index in range(600):
    x = step(x, w)
    if index % 5 == 0:
        total = parallel.total(x)
total.block_until_ready()
print("done")
"""
