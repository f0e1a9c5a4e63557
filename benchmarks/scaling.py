"""Counts what a training step computes, moves and sends, and calculates what that would take.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --json
    python benchmarks/scaling.py --devices 1,2,4 --steps 1     # quicker

Nothing is run: both routes are compiled for so many virtual devices, each number in a process of
its own, and the compiled programs are read: operations and bytes of one device, and bytes between
devices. Every device keeps as many images as before, so that the first two should stay and the last
follow a formula. From the counts on one device and the specification sheets in `machines.py` follow
the times on accelerators, which nobody measured here. Takes a quarter of an hour of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from compiled_steps import Figures, bilevel_steps, experiment, feeding, pretraining
from machines import MACHINES, Machine, Step, Work, all_reduce_seconds, efficiency, step
from ml_collections import ConfigDict

from medinit_jax.core.parallel import Parallel

# Images of a device in route 2, and blocks of route 1 that are compiled for several devices.
IMAGES, BLOCKS = 8, 12
# Those of SWCL's paper: 40 epochs of 493,520 patches.
SWCL_STEPS = 39_800


def experiments() -> tuple[ConfigDict, ConfigDict]:
    """Returns what is counted: the settings of both papers, at 224 pixels."""
    return experiment("hyper.py", "fundus"), experiment("swcl.py", "swcl")


def count(devices: int, steps: int) -> Figures:
    """Counts both routes on so many virtual devices, which this process has."""
    hyper, swcl = experiments()
    parallel = Parallel()
    figures = {
        "route1": bilevel_steps(hyper, parallel, steps, BLOCKS),
        "route2": pretraining(swcl, parallel, IMAGES),
    }
    if devices == 1:
        figures["route2_half"] = pretraining(swcl, parallel, IMAGES // 2)
    return figures


def in_process(devices: int, steps: int) -> Figures:
    """Counts in a process that has so many virtual devices, and compiles without optimizing."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    run = subprocess.run(
        [sys.executable, __file__, "--count", str(devices), "--steps", str(steps)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


def per_device(devices: int, counts: Figures) -> Figures:
    """Returns what one of so many devices computes, moves and sends in a step."""
    one, two = counts["route1"], counts["route2"]
    sampled = one["sample"]["functions"]
    return {
        "devices": devices,
        "route1_sample_gflop": sum(n * flops for n, flops, _ in sampled) / 1e9,
        "route1_sample_gb": sum(n * moved for n, _, moved in sampled) / 1e9,
        "route1_sample_crossing": one["sample"]["crossing"],
        "route1_crossing": one["hypernetwork"].get("crossing", 0),
        "route1_predicted": one["hypernetwork"].get("predicted", 0),
        "route1_spread_crossing": one["hypernetwork"].get("spread_crossing", 0),
        "route1_spread_predicted": one["hypernetwork"].get("spread_predicted", 0),
        "route2_gflop": two["flops"] / 1e9,
        "route2_gb": two["moved"] / 1e9,
        "route2_crossing": two["crossing"],
        "route2_predicted": two["predicted"],
    }


def on_one(counts: Figures) -> Figures:
    """Returns what a whole step is on one device, with the views given."""
    one, two = counts["route1"], counts["route2"]
    networks = [sum(f[0] * f[i] for f in one["functions"]) / one["steps"] for i in (1, 2)]
    return {
        "route1_views": one["views"],
        "route1_networks_gflop": networks[0] / 1e9,
        "route1_networks_gb": networks[1] / 1e9,
        "route1_hypernetwork_gflop": one["hypernetwork"]["flops"] / 1e9,
        "route1_hypernetwork_gb": one["hypernetwork"]["moved"] / 1e9,
        "route1_calls": one["calls"],
        "route1_launches": one["launches"],
        "route1_theta_mb": one["hypernetwork"]["theta_bytes"] / 1e6,
        "route2_views": two["views"],
        "route2_gflop_per_view": two["flops"] / two["views"] / 1e9,
        "route2_gradient_mb": two["gradient"] / 1e6,
        "route2_memory_gb": two["memory"] / 1e9,
    }


def shown(taken: Step) -> Figures:
    """Returns milliseconds of a step: the whole, and its parts."""
    return {"ms": 1e3 * taken.seconds} | {
        f"{name}_ms": 1e3 * seconds for name, seconds in taken._asdict().items()
    }


def pretraining_on(machine: Machine, counts: Figures, batch: int) -> Figures:
    """Calculates a step of route 2 with the paper's batch, made a multiple of the devices."""
    full, half = counts["route2"], counts["route2_half"]
    images = -(-batch // machine.devices) * machine.devices

    def at(views: float, name: str) -> float:
        # What grows with the views, and what does not, such as the optimizer.
        slope = (full[name] - half[name]) / (full["views"] - half["views"])
        return full[name] + slope * (views - full["views"])

    def on(machine: Machine) -> tuple:
        views = 2 * images / machine.devices
        return [(1, Work(at(views, "flops"), at(views, "moved")))], machine

    taken = step(*on(machine), crossing=full["gradient"], sums=4, launches=1)
    alone = step(*on(machine._replace(devices=1)), crossing=0, sums=0, launches=1)
    rate, hosts = images / taken.seconds, machine.devices / machine.per_host
    return {
        "images": images,
        **shown(taken),
        "efficiency": efficiency(alone, taken, machine.devices),
        "memory_gb": at(2 * images / machine.devices, "memory") / 1e9,
        "patches_per_s": rate,
        "cores_per_host": rate / counts["feeding"]["patches_per_core_s"] / hosts,
        "read_mb_per_s": rate * counts["feeding"]["patch_bytes"] / 1e6,
        "hours_of_paper": taken.seconds * SWCL_STEPS / 3600,
        "device_hours_of_paper": taken.seconds * SWCL_STEPS / 3600 * machine.devices,
    }


def bilevel_on(machine: Machine, counts: Figures, config: ConfigDict, hosts: int = 1) -> Figures:
    """Calculates a step of route 1 with a group of batch statistics on every device.

    The paper's batch has fewer groups than these machines have devices. As each device does the
    same, however many there are, its training takes that many devices of a host this step's time,
    but for the sum.

    Args:
        machine: The devices.
        counts: What a step is on one device.
        config: The experiment.
        hosts: Hosts that have architectures of their own (`config.train.spread`), each on all
            views; 1: all devices have all architectures.
    """
    one, networks = counts["route1"], config.train.meta_batch // hosts
    # Most of what the hypernetwork does is for the architectures; all of it is counted.
    hypernetwork = Work(one["hypernetwork"]["flops"], one["hypernetwork"]["moved"])
    raw, theta = (one["hypernetwork"][f"{name}_bytes"] for name in ("raw", "theta"))

    def on(machine: Machine, groups: int, hosts: int) -> Step:
        """A step of a host's share, on the devices of a host each with so many groups."""
        share = [
            (n / one["steps"] / hosts, Work(f * groups, m * groups)) for n, f, m in one["functions"]
        ]
        within = machine._replace(devices=machine.devices // hosts)
        given = {
            "launches": round(one["launches"] / hosts),
            "architectures": config.train.meta_batch // hosts,
        }
        taken = step(
            [*share, (1, hypernetwork)], within, crossing=raw / hosts, sums=networks, **given
        )
        mean = all_reduce_seconds(theta, machine) if hosts > 1 else 0.0
        return taken._replace(between=taken.between + mean)

    taken = on(machine, 1, hosts)
    views = one["views"] * machine.devices // hosts
    alone = on(machine._replace(devices=1), machine.devices // hosts, 1)
    groups = config.train.batch_size // config.train.bn_group
    few = machine._replace(devices=groups * hosts, per_host=min(machine.per_host, groups))
    paper = on(few, 1, hosts).seconds * config.train.steps
    return {
        "views": views,
        **shown(taken),
        "efficiency": efficiency(alone, taken, machine.devices),
        "devices_of_paper": groups * hosts,
        "hours_of_paper": paper / 3600,
        "device_hours_of_paper": paper / 3600 * groups * hosts,
    }


def calculated(counts: Figures) -> Figures:
    """Calculates both routes on every machine."""
    hyper, swcl = experiments()
    return {
        "route1": [
            {"machine": name, **bilevel_on(machine, counts, hyper)}
            for name, machine in MACHINES.items()
        ],
        "route1_spread": [
            {"machine": name, **bilevel_on(machine, counts, hyper, hosts)}
            for name, machine in MACHINES.items()
            if 1 < (hosts := machine.devices // machine.per_host) <= hyper.train.meta_batch
        ],
        "route2": [
            {"machine": name, **pretraining_on(machine, counts, swcl.train.batch)}
            for name, machine in MACHINES.items()
        ],
    }


def table(rows: list[Figures]) -> str:
    """Returns figures as text: a line for each, a column for each of the rows."""
    lines = []
    for name in rows[0]:
        values = [f"{v:,.4g}" if isinstance(v := row[name], float) else f"{v}" for row in rows]
        lines.append(f"{name:<28}" + "".join(f"{value:>14}" for value in values))
    return "\n".join(lines)


def main() -> None:
    """Counts, calculates and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--devices", default="1,2,4,8,64", help="numbers of virtual devices, the first is 1"
    )
    parser.add_argument("--steps", type=int, default=2, help="steps of route 1 that are counted")
    parser.add_argument("--count", type=int, help="count on so many devices, nothing else")
    options = parser.parse_args()
    if options.count:
        print(json.dumps(count(options.count, options.steps)))
        return
    wanted = [int(number) for number in options.devices.split(",")]
    if wanted[0] != 1:
        parser.error("--devices has to begin with 1, from which the times are calculated")
    found = {devices: in_process(devices, options.steps) for devices in wanted}
    counts = {**found[1], "feeding": feeding()}
    figures = {
        "step_on_one_device": on_one(counts),
        "each_of_devices": [per_device(*pair) for pair in found.items()],
        "feeding": counts["feeding"],
        "calculated": calculated(counts),
        "load_average": os.getloadavg()[0],
    }
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(table([{**figures["step_on_one_device"], **figures["feeding"]}]), end="\n\n")
    print(table(figures["each_of_devices"]))
    for route, rows in figures["calculated"].items():
        print(f"\n{route}, calculated, not measured:\n{table(rows)}")


if __name__ == "__main__":
    main()
