"""Devices: one program per device, with a leading device axis, as `pmap` means it.

This is the only file that knows devices and collectives. With one device there is no leading axis
and `map` is plain `jit`; with several, every array gains a leading axis of that size and the
function runs once per device on its own slice, without communication; `total` is the one reduction.
Functions that do communicate run under `Parallel.sharded` and use `all_gather`, `all_sum` and
`position`.

The devices may belong to several processes. Then each hands in its own rows of a batch, which are
those that its devices work on, and what is the same on all devices is read by each from its own.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from medinit_jax.core import cluster
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


def own_devices() -> Parallel:
    """Returns the devices of this process, for work that processes do by themselves."""
    return Parallel(jax.local_devices())


@jax.jit
def _with_axis(tree):
    return jax.tree.map(lambda x: x[None], tree)


class Parallel:
    """Maps functions over devices.

    Args:
        devices: Devices to use; those of all processes by default.
        part: Whether they are a part of others, from which they get arrays by `local`.

    Attributes:
        devices: The devices, those of a process next to each other.
        process: Which of the processes that own the devices this one is, and their number.

    Raises:
        UsageError: Processes have different numbers of devices.
    """

    def __init__(self, devices: Sequence[Any] | None = None, part: bool = False):
        chosen = jax.devices() if devices is None else devices
        # Only the order of processes is changed: a batch's rows lie in that order.
        self.devices = tuple(sorted(chosen, key=lambda device: device.process_index))
        owners = [device.process_index for device in self.devices]
        counts = {owner: owners.count(owner) for owner in owners}
        if len(set(counts.values())) > 1:
            told = ", ".join(f"process {owner} has {count}" for owner, count in counts.items())
            raise UsageError(
                f"All processes need the same number of devices, but {told}; start them on like "
                "hosts, or show each as many devices."
            )
        self.process = (list(counts).index(jax.process_index()), len(counts))
        # What comes from other devices is committed to its one; all the rest has to be, too.
        self._committed = part
        mesh = Mesh(np.array(self.devices, dtype=object), (AXIS,), axis_types=(AxisType.Auto,))
        self.mesh = mesh
        self._split = NamedSharding(mesh, PartitionSpec(AXIS))
        self._sum = jax.jit(
            lambda tree: jax.tree.map(lambda x: x.sum(0), tree),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        self._mean = jax.jit(
            lambda tree: jax.tree.map(lambda x: x.mean(0), tree),
            out_shardings=NamedSharding(mesh, PartitionSpec()),
        )
        self._copy = jax.jit(
            lambda tree: jax.tree.map(
                lambda x: jax.numpy.broadcast_to(x, (self.size, *x.shape)), tree
            ),
            out_shardings=self._split,
        )
        self._everything = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
        if self.process[1] > 1:
            self._connect()

    def _connect(self) -> None:
        """Opens the connections between processes, which waits for none of them for long."""
        cluster.meet()
        jax.block_until_ready(self._sum(self._put(np.zeros(self.size // self.process[1]))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parallel) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple:
        return self.devices, self._committed

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
        """Puts a pytree of this process's host arrays on the devices, an equal part on each.

        Args:
            batch: The arrays (rows, ...), those of all processes together the batch.
        """
        if self.size == 1:
            return self._place(batch)
        own = self.size // self.process[1]
        return self._put(jax.tree.map(lambda x: x.reshape(own, -1, *x.shape[1:]), batch))

    def spread(self, batch):
        """Divides a pytree of this process's host arrays over the devices, without a device axis.

        A compiled function sees the whole batch: its means are over all devices.

        Args:
            batch: The arrays (rows, ...), those of all processes together the batch.
        """
        return self._place(batch) if self.size == 1 else self._put(batch)

    def _put(self, rows):
        if self.process[1] == 1:
            return jax.device_put(rows, self._split)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(
                self._split, x, (x.shape[0] * self.process[1], *x.shape[1:])
            ),
            jax.device_get(rows),
        )

    def split(self, function: Callable) -> Callable:
        """Compiles a function of whole batches so that its outputs lie split over the devices.

        Its first argument is a batch, of which each process gives its rows; others are whole.
        """
        if self.size == 1:
            alone = jit(function)
            return (lambda *args: alone(*self._place(args))) if self._committed else alone

        def whole(*args):
            return jax.tree.map(lambda x: x.reshape(self.size, -1, *x.shape[1:]), function(*args))

        compiled = jit(whole, out_shardings=self._split)
        if self.process[1] == 1:
            return compiled
        return lambda batch, *args: compiled(self._put(batch), *args)

    def replicate(self, tree):
        """Puts one and the same pytree on all devices, without a device axis."""
        return self._send(tree, lambda x: self.everywhere)

    def divide(self, tree):
        """Puts a part of every array of one and the same pytree on each device.

        An array is divided along its longest axis whose length the devices divide; one without
        such an axis lies on all of them. Compiled functions see whole arrays.
        """
        return self._send(tree, self.part)

    def keep_divided(self, tree):
        """Has a pytree divided as `divide` does, inside a compiled function."""
        if self.size == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, jax.tree.map(self.part, tree))

    def part(self, x) -> NamedSharding:
        """Returns where `divide` puts an array, of which the shape is read."""
        fitting = [axis for axis, length in enumerate(x.shape) if length % self.size == 0]
        if not fitting:
            return NamedSharding(self.mesh, PartitionSpec())
        # Written as JAX writes it, or a function would be compiled for either.
        before = max(fitting, key=lambda axis: x.shape[axis]) * [None]
        return NamedSharding(self.mesh, PartitionSpec(*before, AXIS))

    def _send(self, tree, place: Callable):
        """Puts a pytree where `place` says for every array; what lies there stays as it is."""
        if self.size == 1:
            return self._place(jax.device_get(tree))

        def send(x):
            wanted = place(x)
            if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(wanted, x.ndim):
                return x
            if self.process[1] == 1:
                return jax.device_put(x, wanted)
            whole = jax.device_get(x)
            return jax.make_array_from_callback(whole.shape, wanted, whole.__getitem__)

        return jax.tree.map(send, tree)

    @property
    def everywhere(self) -> NamedSharding | None:
        """Where what is the same on all devices lies, for `jit`; None on one device."""
        return None if self.size == 1 else NamedSharding(self.mesh, PartitionSpec())

    def _place(self, tree):
        """Puts a host pytree on the one device.

        On the default device it stays uncommitted, as the outputs of `jit` are: a function that
        is compiled for the one kind of argument compiles anew for the other.
        """
        default = self.devices[0] == jax.local_devices()[0] and not self._committed
        return jax.device_put(tree, None if default else self.devices[0])

    def copy(self, tree):
        """Gives every device its own copy of a pytree, so that gradients stay per device."""
        if self.size == 1:
            return self._place(tree) if self._committed else tree
        return self._copy(tree)

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

    @functools.cached_property
    def own(self) -> Parallel:
        """The devices of this process among these; itself where there is no other process."""
        if self.process[1] == 1:
            return self
        here = [d for d in self.devices if d.process_index == jax.process_index()]
        return Parallel(here, part=True)

    def local(self, tree):
        """Returns what lies on all devices alike as arrays of `own`; nothing is copied."""
        if self.process[1] == 1:
            return tree
        place = self.own.everywhere or SingleDeviceSharding(self.own.devices[0])
        return jax.tree.map(
            lambda x: jax.make_array_from_single_device_arrays(
                x.shape, place, [shard.data for shard in x.addressable_shards]
            ),
            tree,
        )

    def mean_over_processes(self, tree):
        """Returns the mean of what the processes have, on all devices; every process calls it.

        One compiled reduction over all devices, of which those of a process add the same.

        Args:
            tree: Pytree of arrays that lie alike on all devices of `own`.
        """
        if self.process[1] == 1:
            return tree
        rows = _with_axis(tree) if self.own.size == 1 else self.own.copy(tree)
        return self.mean(jax.tree.map(self._joined, rows))

    def _joined(self, rows):
        """Returns an array (own devices, ...) as part of one (devices, ...)."""
        parts = [shard.data for shard in rows.addressable_shards]
        shape = (self.size, *rows.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, self._split, parts)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Returns the rows of all processes, in their order; every process calls it.

        Args:
            rows: Any dtype (n, ...), as many on each process.
        """
        if self.process[1] == 1:
            return rows
        # As bytes, which no device rounds, and filled up to what its devices can share.
        own = self.size // self.process[1]
        padded = -(-len(rows) // own) * own
        flat = np.zeros((padded, rows[:1].nbytes), np.uint8)
        flat[: len(rows)] = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
        found = np.asarray(self._everything(self._put(flat))).reshape(self.process[1], padded, -1)
        kept = np.ascontiguousarray(found[:, : len(rows)]).view(rows.dtype)
        return kept.reshape(-1, *rows.shape[1:])

    def mean(self, tree):
        """Averages the devices' parts of a pytree (device, ...) inside one compiled reduction."""
        return tree if self.size == 1 else self._mean(tree)

    def total(self, tree):
        """Adds the devices' parts of a pytree (device, ...) inside one compiled reduction."""
        return tree if self.size == 1 else self._sum(tree)
