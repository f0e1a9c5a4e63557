"""What a step would take on accelerators: a calculation from counts and specification sheets.

Nothing here was measured. A device takes the longer of computing and moving bytes, then waits for
what is added up between devices, as if nothing overlapped. What a sheet promises is reached only in
part; the parts are assumptions, stated below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# Shares of what the sheets promise.
OF_FLOPS, OF_MEMORY, OF_LINKS = 0.4, 0.7, 0.7
# Seconds: the host starts one compiled function; devices agree before bytes move; the host prepares
# an architecture (benchmarks/README.md has 1.6 and 3.3 ms).
LAUNCH, AGREE, ARCHITECTURE = 50e-6, 30e-6, 2e-3


class Machine(NamedTuple):
    """Accelerators that train together.

    Attributes:
        devices: How many there are.
        per_host: How many a host has.
        flops: Peak of one in the precision that JAX takes for float32, multiplications per second
            and additions.
        memory_rate: Bytes per second of its memory.
        memory: Bytes of its memory.
        link: Bytes per second that it sends to its neighbors.
        network: Bytes per second that it sends to other hosts, if these are not its neighbors.
    """

    devices: int
    per_host: int
    flops: float
    memory_rate: float
    memory: float
    link: float
    network: float = 0.0


# https://cloud.google.com/tpu/docs/v5e: 197 TFLOP/s in bfloat16, which is what JAX multiplies
# float32 in by default there; 16 GB, 819 GB/s; 400 GB/s between chips both ways together; 2D torus.
_V5E = Machine(1, 8, 197e12, 819e9, 16e9, 200e9)
# https://www.nvidia.com/en-us/data-center/h100, SXM: 989 TFLOP/s in TF32 with sparsity, half of it
# without; 80 GB, 3.35 TB/s; NVLink 900 GB/s both ways together. DGX H100: 400 Gb/s for each GPU.
_H100 = Machine(1, 8, 494.7e12, 3.35e12, 80e9, 450e9, 50e9)
MACHINES = {
    "v5e-8": _V5E._replace(devices=8),
    "v5e-64": _V5E._replace(devices=64),
    "v5e-256": _V5E._replace(devices=256),
    "H100x8": _H100._replace(devices=8),
    "H100x64": _H100._replace(devices=64),
}


class Work(NamedTuple):
    """What compiled functions do on one device.

    Attributes:
        flops: Floating-point operations.
        moved: Bytes read and written.
    """

    flops: float
    moved: float

    def computing(self, machine: Machine) -> float:
        """Returns the seconds that it computes."""
        return self.flops / (OF_FLOPS * machine.flops)

    def moving(self, machine: Machine) -> float:
        """Returns the seconds that it moves bytes."""
        return self.moved / (OF_MEMORY * machine.memory_rate)

    def seconds(self, machine: Machine) -> float:
        """Returns how long it takes: the longer of both."""
        return max(self.computing(machine), self.moving(machine))


def all_reduce_seconds(size: float, machine: Machine, times: int = 1) -> float:
    """Returns how long adding up takes: in a ring of neighbors, or of hosts and within each.

    Args:
        size: Bytes that every device has of each sum.
        machine: The devices.
        times: How many sums, one after another; `size` is that of all together.
    """
    if machine.devices == 1:
        return 0.0
    # Everything but its own part is sent twice: once to be added up, once to be known.
    if not machine.network or machine.devices <= machine.per_host:
        share = 2 * (machine.devices - 1) / machine.devices
        return times * AGREE + share * size / (OF_LINKS * machine.link)
    hosts = machine.devices // machine.per_host
    within = 2 * (machine.per_host - 1) / machine.per_host * size / (OF_LINKS * machine.link)
    part = size / machine.per_host
    between = 2 * (hosts - 1) / hosts * part / (OF_LINKS * machine.network)
    return 2 * times * AGREE + within + between


class Step(NamedTuple):
    """One training step.

    Attributes:
        computing: Seconds in which a device computes, if bytes were there at once.
        device: Seconds in which it computes or moves bytes.
        between: Seconds in which devices wait for each other's bytes.
        host: Seconds in which the host starts functions and prepares architectures, meanwhile.
    """

    computing: float
    device: float
    between: float
    host: float

    @property
    def seconds(self) -> float:
        """The whole step: the host works ahead of the devices, not of itself."""
        return max(self.device + self.between, self.host)


def step(
    work: Sequence[tuple[float, Work]],
    machine: Machine,
    crossing: float,
    sums: int,
    launches: int,
    architectures: int = 0,
) -> Step:
    """Returns what a step takes.

    Args:
        work: How often each function runs, and what it does on one device.
        machine: The devices.
        crossing: Bytes that are added up between devices.
        sums: In how many parts.
        launches: Functions that the host starts.
        architectures: Those that the host prepares; its threads share one interpreter.
    """
    return Step(
        math.fsum(count * part.computing(machine) for count, part in work),
        math.fsum(count * part.seconds(machine) for count, part in work),
        all_reduce_seconds(crossing, machine, sums),
        launches * LAUNCH + architectures * ARCHITECTURE,
    )


def efficiency(alone: Step, together: Step, devices: int) -> float:
    """Returns the time of one device with the whole batch over that of all, times their number."""
    return alone.seconds / (devices * together.seconds)
