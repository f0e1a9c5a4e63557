"""Times the bilevel step and what surrounds it; needs no images.

    python benchmarks/bilevel.py
    python benchmarks/bilevel.py --json
    python benchmarks/bilevel.py --space deepnets --steps 4
    python benchmarks/bilevel.py --against-torch          (needs the torch extra)

Warm-up is measured from an empty compilation cache unless `--cache` names one. What each figure
means is told in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import runpy
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from architectures import CLASSES, Figures, compiled_share, host_ms, one_width
from ml_collections import ConfigDict
from rich.console import Console

from medinit_jax.arch.graph import build_graph
from medinit_jax.arch.space import get_space
from medinit_jax.core import compilation_cache, optim, state
from medinit_jax.core.parallel import Parallel
from medinit_jax.hyper.bilevel import MetaBatch, Writer, meta_batch
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta
from medinit_jax.hyper.setup import Bilevel, make_bilevel, warm_up
from medinit_jax.hyper.stream import ArchitectureStream
from medinit_jax.hyper.train import make_step

ROOT = Path(__file__).resolve().parents[1]
FULL_TILE = (64, 64, 11, 11)


def experiment(space: str, size: int) -> ConfigDict:
    """Returns the experiment of `configs/hyper.py` on a space and an image size: rotation."""
    config = runpy.run_path(str(ROOT / "configs" / "hyper.py"))["get_config"]()
    with config.unlocked():
        config.space = space
        config.data.size = size
        config.hyper.max_shape = FULL_TILE if space == "deepnets" else (32, 32, 7, 7)
        config.pretext.name, config.pretext.mode = "rotation", "four"
        config.hyper.tiling = "repeat"
    return config


def seconds(function: Callable, *args) -> tuple[float, Any]:
    """Runs a function to the end on its device; returns the time and what it returned."""
    started = time.perf_counter()
    value = jax.block_until_ready(function(*args))
    return time.perf_counter() - started, value


def median_ms(times: Iterable[float]) -> float:
    """Returns the median of seconds in milliseconds."""
    return 1e3 * float(np.median(list(times)))


class Steps:
    """The same few training steps, run again and again.

    Args:
        bilevel: What training runs on.
        count: Number of steps, each with architectures of its own.
    """

    def __init__(self, bilevel: Bilevel, count: int):
        config = bilevel.config
        self.bilevel, self.count = bilevel, count
        self.optimizer, _ = optim.create(
            ConfigDict({**config.optim, "total_steps": config.train.steps})
        )
        self.stream = ArchitectureStream(
            bilevel.space, bilevel.module, config.train.meta_batch, config.seed
        )
        self.key = jax.random.key(config.seed)
        shape = (bilevel.objective.images(config.train.batch_size), *[config.data.size] * 2, 3)
        self.images = np.random.default_rng(0).standard_normal(shape, np.float32)
        self.run_step = make_step(bilevel, self.optimizer, self.stream, self.key)
        self.update = jax.jit(
            lambda current, gradient: state.apply_gradients(current, gradient, self.optimizer)[0]
        )

    def start(self) -> state.TrainState:
        """Returns the state before the first step."""
        theta = init_theta(self.bilevel.module, self.key)["params"]
        return state.create(theta, self.optimizer)

    def run_all(self) -> float:
        """Runs all steps as training does, waiting only at the end; returns seconds."""
        current = self.start()
        started = time.perf_counter()
        for step in range(self.count):
            current, _ = self.run_step(current, step, {"image": self.images})
        jax.block_until_ready(current)
        return time.perf_counter() - started

    def parts(self, step: int) -> dict[str, float]:
        """Runs one step with a wait after every part; returns seconds by part.

        The backward pass is the time of forward and backward together, less that of forward alone.
        """
        bilevel, current = self.bilevel, self.start()
        times: dict[str, float] = {}
        started = time.perf_counter()
        batch = self.stream.prepare(step)
        times["sampling"] = time.perf_counter() - started
        times["views"], (views, targets) = seconds(bilevel.views, self.images, self.key, {})
        started = time.perf_counter()
        raw, pull = bilevel.writer.write(current.params, batch)
        jax.block_until_ready(raw)
        times["hypernetwork"] = time.perf_counter() - started
        times["forward"] = times["backward"] = 0.0
        gradients = []
        for network, given in zip(batch.programs, raw, strict=True):
            copies = bilevel.parallel.copy(given)
            forward, _ = seconds(bilevel.tape.loss, network, copies, views, targets)
            both, (_, _, gradient) = seconds(
                bilevel.tape.loss_and_gradient, network, copies, views, targets
            )
            times["forward"] += forward
            times["backward"] += both - forward
            gradients.append(bilevel.parallel.total(gradient))
        pulled, gradient = seconds(pull, gradients)
        times["hypernetwork"] += pulled
        times["update"], _ = seconds(self.update, current, gradient)
        return times

    def measure(self, repeats: int) -> dict[str, float]:
        """Returns milliseconds of a step by part, and of a whole one as training runs it.

        Of every step the median over the repeats is taken, and of the steps the mean, as they hold
        networks of different sizes. Everything is compiled by a pass that does not count.
        """
        self.run_all()
        totals = [self.run_all() for _ in range(repeats)]
        for step in range(self.count):
            self.parts(step)
        passes = [[self.parts(step) for step in range(self.count)] for _ in range(repeats)]
        figures = {
            name: float(np.mean([median_ms(p[s][name] for p in passes) for s in range(self.count)]))
            for name in passes[0][0]
        }
        return {**figures, "total": median_ms(totals) / self.count}


def hypernetwork_ms(nodes: int, repeats: int = 20, looked_at: int = 300) -> Figures:
    """Times the hypernetwork, forward and backward, on the training network nearest to a size.

    Args:
        nodes: Wanted number of nodes.
        repeats: Times it is run.
        looked_at: Architectures to choose from.

    Returns:
        The median on the clock, the mean of core time, and which network it was.
    """
    space = get_space("deepnets")
    networks = [space.program("train", index, CLASSES) for index in range(looked_at)]
    graphs = [build_graph(network) for network in networks]
    sizes = [len(graph.node_type) for graph in graphs]
    index = int(np.argmin(np.abs(np.array(sizes) - nodes)))
    module = HyperInitializer(hidden=32, max_shape=FULL_TILE, num_classes=CLASSES)
    theta = init_theta(module, jax.random.key(0))["params"]
    writer = Writer(module)
    batch: MetaBatch = meta_batch([networks[index]], [graphs[index]], module)
    cotangents = jax.tree.map(jnp.ones_like, writer.write(theta, batch)[0])

    def both():
        raw, pull = writer.write(theta, batch)
        return raw, pull(cotangents)

    both()
    core = time.process_time()
    times = [seconds(both)[0] for _ in range(repeats)]
    core = time.process_time() - core
    return {
        "hypernet_ms_144_nodes": median_ms(times),
        "hypernet_core_ms_144_nodes": 1e3 * core / repeats,
        "hypernet_network": f"deepnets train:{index}, {sizes[index]} nodes",
    }


def against_torch(options: argparse.Namespace) -> Figures:
    """Compares with eager PyTorch; see `against_torch.py`."""
    import against_torch

    parallel = Parallel(jax.local_devices()[:1])

    def ours(size: int) -> Bilevel:
        bilevel = make_bilevel(experiment("deepnets", size), parallel)
        return bilevel._replace(space=one_width(bilevel.space))

    load = os.getloadavg()[0]
    figures = against_torch.compare(ours(32), ours(64), options.steps, options.repeats)
    loads = {"before": load, "after": os.getloadavg()[0]}
    return {**figures, "machine": machine(), "load_average": loads}


def in_fair_environment() -> None:
    """Starts this process anew unless it was started with PyTorch's memory settings."""
    from against_torch import fair_environment

    wanted = fair_environment()
    if wanted != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)


def peak_memory_mb() -> float:
    """Returns the largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def machine() -> Figures:
    """Returns what the figures were taken on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": jax.devices()[0].device_kind,
        "cores": cores,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def benchmark(options: argparse.Namespace, console: Console) -> Figures:
    """Runs everything; `options` are those of the command line."""
    load = os.getloadavg()[0]
    config = experiment(options.space, options.size)
    parallel = Parallel(jax.local_devices()[:1])
    bilevel = make_bilevel(config, parallel)
    warmup = warm_up(bilevel, console)
    # A second tape compiles anew, and finds everything in the cache that the first one filled.
    again = warm_up(make_bilevel(config, parallel), console)
    steps = Steps(bilevel, options.steps)
    try:
        step_ms = steps.measure(options.repeats)
    finally:
        steps.stream.close()
    figures: Figures = {
        "step_ms": step_ms,
        "step": f"space {options.space}, {options.size} px, {config.train.meta_batch} networks, "
        f"{config.train.batch_size} views, {options.steps} steps, {options.repeats} repeats",
        "warmup_s": warmup,
        "warmup_cached_s": again,
        "peak_memory_mb": peak_memory_mb(),
    }
    space = one_width(get_space("deepnets"))
    figures |= compiled_share(space, options.networks, options.signatures)
    figures |= hypernetwork_ms(nodes=144)
    figures |= host_ms()
    loads = {"before": load, "after": os.getloadavg()[0]}
    return {**figures, "machine": machine(), "load_average": loads}


def table(figures: Figures, prefix: str = "") -> list[str]:
    """Returns one line for each figure."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += table(value, f"{prefix}{name}.")
        else:
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append(f"{prefix + name:36s} {text}")
    return lines


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--space", choices=("small", "deepnets"), default="small")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=10, help="different steps that are timed")
    parser.add_argument("--repeats", type=int, default=3, help="times each of them is timed")
    parser.add_argument(
        "--networks", type=int, default=10_000, help="architectures that are looked at beforehand"
    )
    parser.add_argument(
        "--signatures", type=int, default=1_000, help="signatures that count as compiled then"
    )
    parser.add_argument("--cache", help="compilation cache to use; a new, empty one by default")
    parser.add_argument(
        "--against-torch", action="store_true", help="compare with eager PyTorch, and nothing else"
    )
    options = parser.parse_args()
    if options.against_torch:
        in_fair_environment()
    with tempfile.TemporaryDirectory() as empty:
        compilation_cache.enable(options.cache or empty)
        if options.against_torch:
            figures = against_torch(options)
        else:
            figures = benchmark(options, Console(stderr=True))
    print(json.dumps(figures, indent=2) if options.json else "\n".join(table(figures)))


if __name__ == "__main__":
    main()
