"""Devices: one program per local device, with a leading device axis, as `pmap` means it.

This is the only file that knows devices and collectives. With one device there is no leading axis
and `map` is plain `jit`; with several, every array gains a leading axis of that size and the
function runs once per device on its own slice, without communication; `total` is the one reduction.
Functions that do communicate run under `Parallel.sharded` and use `all_gather`, `all_sum` and
`position`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medinit_jax.core.compiler import jit
from medinit_jax.core.errors import UsageError

AXIS = "data"


def provide_threads(environment: MutableMapping[str, str] = os.environ) -> None:
    """Gives several virtual CPU devices the threads they need; call it before JAX starts.

    XLA's client for CPUs has a thread for each core or device, whichever are more. Those that wait
    in a reduction and those that wait for room to enqueue more work can take them all, and the
    process stands still. Nothing changes for other devices, or where PJRT_NPROC is set.

    Args:
        environment: Of the process; XLA_FLAGS or JAX_NUM_CPU_DEVICES say how many devices it has.
    """
    flags = environment.get("XLA_FLAGS", "")
    said = re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)
    devices = int(said[-1] if said else environment.get("JAX_NUM_CPU_DEVICES") or 1)
    if devices > 1:
        environment.setdefault("PJRT_NPROC", str(max(4 * devices, os.cpu_count() or 1)))


def all_gather(tree):
    """Joins the devices' rows (b, ...) of a pytree to (size b, ...) inside `Parallel.sharded`."""
    return jax.tree.map(lambda x: jax.lax.all_gather(x, AXIS, tiled=True), tree)


def all_sum(tree):
    """Adds up the devices' values of a pytree inside `Parallel.sharded`."""
    return jax.lax.psum(tree, AXIS)


def position() -> jax.Array:
    """Returns the number of the device that asks, from 0, inside `Parallel.sharded`."""
    return jax.lax.axis_index(AXIS)


class Parallel:
    """Maps functions over local devices.

    Args:
        devices: Devices to use; all local ones by default.
    """

    def __init__(self, devices: Sequence[Any] | None = None):
        self.devices = tuple(devices if devices is not None else jax.local_devices())
        mesh = Mesh(np.array(self.devices, dtype=object), (AXIS,), axis_types=(AxisType.Auto,))
        self.mesh = mesh
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))
        self._sum = jax.jit(
            lambda tree: jax.tree.map(lambda x: x.sum(0), tree),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        self._copy = jax.jit(
            lambda tree: jax.tree.map(
                lambda x: jax.numpy.broadcast_to(x, (self.size, *x.shape)), tree
            ),
            out_shardings=self._split,
        )

    @property
    def size(self) -> int:
        """Number of devices."""
        return len(self.devices)

    def check_batch(self, batch: int, group: int) -> None:
        """Raises UsageError unless groups of `group` fill `batch` and spread over the devices."""
        for name, value in (("batch_size", batch), ("bn_group", group)):
            if value < 1:
                raise UsageError(f"config.train.{name}={value} must be at least 1.")
        if batch % group or (batch // group) % self.size:
            raise UsageError(
                f"config.train.batch_size={batch} does not divide into groups of "
                f"config.train.bn_group={group} spread evenly over {self.size} device(s); make it "
                f"a multiple of {group * self.size} or lower config.train.bn_group."
            )

    def shard(self, batch):
        """Puts a pytree of host arrays (batch, ...) on the devices, an equal part on each."""
        if self.size == 1:
            return self._place(batch)
        parts = jax.tree.map(lambda x: x.reshape(self.size, -1, *x.shape[1:]), batch)
        return jax.device_put(parts, self._split)

    def spread(self, batch):
        """Divides a pytree of host arrays (batch, ...) over the devices, without a device axis.

        A compiled function sees the whole batch: its means are over all devices.
        """
        return self._place(batch) if self.size == 1 else jax.device_put(batch, self._split)

    def split(self, function: Callable) -> Callable:
        """Compiles a function of whole batches so that its outputs lie split over the devices."""
        if self.size == 1:
            return jit(function)

        def whole(*args):
            return jax.tree.map(lambda x: x.reshape(self.size, -1, *x.shape[1:]), function(*args))

        return jit(whole, out_shardings=self._split)

    def replicate(self, tree):
        """Puts one and the same pytree on all devices, without a device axis."""
        if self.size == 1:
            return self._place(jax.device_get(tree))
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def _place(self, tree):
        """Puts a host pytree on the one device.

        On the default device it stays uncommitted, as the outputs of `jit` are: a function that
        is compiled for the one kind of argument compiles anew for the other.
        """
        default = self.devices[0] == jax.local_devices()[0]
        return jax.device_put(tree, None if default else self.devices[0])

    def copy(self, tree):
        """Gives every device its own copy of a pytree, so that gradients stay per device."""
        return tree if self.size == 1 else self._copy(tree)

    def map(self, function: Callable) -> Callable:
        """Compiles `function` to run once per device on that device's part of every argument."""
        if self.size == 1:
            return jit(function)

        def per_device(*args):
            outputs = function(*jax.tree.map(lambda x: x[0], args))
            return jax.tree.map(lambda x: x[None], outputs)

        spec = PartitionSpec(AXIS)
        mapped = jax.shard_map(
            per_device, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
        return jit(mapped)

    def sharded(self, function: Callable) -> Callable:
        """Runs a function of one device's rows everywhere, for use inside a compiled function.

        Args:
            function: Takes pytrees of this device's part (b, ...) of whole batches, uses
                `all_gather` and `all_sum`, and returns what is the same on all devices.

        Returns:
            A function of whole batches (size b, ...). JAX keeps track of which values differ
            between devices, so that its gradient is that of the whole, whoever asks for it.
        """
        spec = PartitionSpec(AXIS)
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=spec, out_specs=PartitionSpec(), check_vma=True
        )

    def total(self, tree):
        """Adds the devices' parts of a pytree (device, ...) inside one compiled reduction."""
        return tree if self.size == 1 else self._sum(tree)
