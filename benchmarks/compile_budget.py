"""Measures what compiling the operations of a design space costs, and how soon it is over.

    python benchmarks/compile_budget.py            # deepnets at C in {32, 64}, then other families
    python benchmarks/compile_budget.py --json
    python benchmarks/compile_budget.py --sample 100   # a tenth of the time, the rest scaled
    python benchmarks/compile_budget.py --steps 2000 --meta_batch 8

Everything is compiled into a new, empty cache, once, and then loaded from it by a second tape. Runs
for an hour on two cores; with `--sample N` only N operations of each space are compiled, evenly
spaced from the most frequent to the rarest, and the figures scaled to all of them. What each figure
means is told in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time

import jax
from architectures import CLASSES, FRESH, Figures
from bilevel import experiment, machine, table
from rich.console import Console

from medinit_jax.arch.space import Space, few_widths, get_space
from medinit_jax.arch.tape import Signature, signatures
from medinit_jax.core import compilation_cache
from medinit_jax.core.parallel import Parallel
from medinit_jax.core.progress import Progress
from medinit_jax.hyper.bilevel import zero_example
from medinit_jax.hyper.setup import Bilevel, make_bilevel
from medinit_jax.hyper.stream import frequent_signatures


def spaces(size: int) -> dict[str, Space]:
    """Returns what is measured: DeepNets in two widths, the other families, and both together."""
    deepnets = dataclasses.replace(get_space("deepnets", size), widen=few_widths)
    mixed = get_space("mixed", size)
    return {
        "deepnets": deepnets,
        "families": dataclasses.replace(mixed, families=1.0),
        "mixed": mixed,
    }


def compiled(bilevel: Bilevel, wanted: list[Signature], console: Console) -> tuple[float, float]:
    """Compiles operations, or loads them from the cache.

    Returns:
        Seconds on the clock, and of all cores together.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    clock, cpu, done = time.perf_counter(), time.process_time(), iter(range(1, len(wanted) + 1))
    with Progress("compile", len(wanted), console, unit="blocks") as bar:
        bilevel.tape.warm_up(
            wanted,
            bilevel.config.train.batch_size,
            lambda signature: zero_example(bilevel.module, signature),
            cores,
            lambda: bar.update(next(done)),
        )
    return time.perf_counter() - clock, time.process_time() - cpu


def compiling_share(space: Space, known: set[Signature], steps: int, meta_batch: int) -> float:
    """Returns the share of fresh steps that meet an operation not compiled before."""
    known, compiling = set(known), 0
    for step in range(steps):
        first = FRESH + step * meta_batch
        found = {
            signature
            for index in range(first, first + meta_batch)
            for signature in signatures(space.program("train", index, CLASSES))
        }
        compiling += not found <= known
        known |= found
    return compiling / steps


def benchmark(options: argparse.Namespace, console: Console) -> Figures:
    """Runs everything; `options` are those of the command line."""
    figures: Figures = {"load_average_before": os.getloadavg()[0]}
    known: dict[str, tuple[Signature, ...]] = {}
    for name, space in spaces(options.size).items():
        started = time.process_time()
        known[name] = frequent_signatures(space, CLASSES, options.networks)
        figures[f"{name}_signatures"] = len(known[name])
        figures[f"{name}_enumerated_s"] = time.process_time() - started
        figures[f"{name}_compiling_share"] = compiling_share(
            space, set(known[name]), options.steps, options.meta_batch
        )
    if options.compile:
        config = experiment("mixed", options.size)
        with config.unlocked():
            config.hyper.node_types = 29
        parallel = Parallel(jax.local_devices()[:1])
        before: set[Signature] = set()
        for name in ("deepnets", "families"):
            wanted = [signature for signature in known[name] if signature not in before]
            before |= set(wanted)
            sample = wanted[:: max(1, len(wanted) // options.sample)] if options.sample else wanted
            scale = len(wanted) / len(sample)
            _, cpu = compiled(make_bilevel(config, parallel), sample, console)
            again, again_cpu = compiled(make_bilevel(config, parallel), sample, console)
            figures[f"{name}_compiled"] = len(sample)
            figures[f"{name}_cold_cpu_minutes"] = scale * cpu / 60
            figures[f"{name}_warm_s"] = scale * again
            figures[f"{name}_warm_cpu_s"] = scale * again_cpu
    return {
        **figures,
        "work": f"{options.size} px, 32 views; {options.networks} networks looked at, then "
        f"{options.steps} steps of {options.meta_batch}",
        "machine": machine(),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--networks", type=int, default=30_000, help="networks looked at")
    parser.add_argument("--steps", type=int, default=2_000, help="fresh steps that come after")
    parser.add_argument("--meta_batch", type=int, default=2, help="networks of a step")
    parser.add_argument("--sample", type=int, help="operations compiled per space (default: all)")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="only count")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as empty:
        compilation_cache.enable(empty)
        figures = benchmark(options, Console(stderr=True))
    print(json.dumps(figures, indent=2) if options.json else "\n".join(table(figures)))


if __name__ == "__main__":
    main()
