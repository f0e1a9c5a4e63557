"""What a training architecture costs the host, and how often it needs a new compiled operation.

Nothing here runs on a device: which operations would be compiled is a matter of sets. The figures
are part of what `benchmarks/bilevel.py` prints; `python benchmarks/architectures.py` prints them
alone.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import numpy as np

from medinit_jax.arch.graph import build_graph
from medinit_jax.arch.space import Space, get_space
from medinit_jax.arch.tape import signatures
from medinit_jax.hyper.bilevel import meta_batch
from medinit_jax.hyper.hypernetwork import HyperInitializer
from medinit_jax.hyper.stream import frequent_signatures

CLASSES = 4
# Far behind the architectures that warm-up looks at.
FRESH = 500_000
Figures = dict[str, Any]


def one_width(space: Space) -> Space:
    """Returns the space with C=32 and 256 hidden units of the head; `small` has one width anyway.

    In the widths that training draws there are several times as many different operations.
    """
    if space.name == "small":
        return space

    def keep(space, arch, parameters, rng):
        del space, parameters, rng
        return arch

    return dataclasses.replace(space, widen=keep)


def compiled_share(space: Space, networks: int, known_most: int, fresh: int = 1000) -> Figures:
    """Counts how often fresh architectures meet an operation that was not compiled before.

    Nothing is compiled for it: what would be is a matter of sets.

    Args:
        space: The design space.
        networks: Architectures that warm-up looks at.
        known_most: Most frequent signatures that warm-up compiles.
        fresh: Architectures that come after.

    Returns:
        `compiled_share_last_100`, the share of calls in the last 100 whose signature was new; and
        what surrounds it.
    """
    known = set(frequent_signatures(space, CLASSES, networks)[:known_most])
    warmed = len(known)
    new, calls = [], []
    for index in range(FRESH, FRESH + fresh):
        found = signatures(space.program("train", index, CLASSES))
        unknown = set(found) - known
        known |= unknown
        new.append(len(unknown))
        calls.append(len(found))
    return {
        "compiled_share_last_100": sum(new[-100:]) / sum(calls[-100:]),
        "stalled_share_last_100": float(np.mean(np.array(new[-100:]) > 0)),
        "signatures_warmed_up": warmed,
        "signatures_compiled_later": sum(new),
        "calls_per_architecture": float(np.mean(calls)),
    }


def host_ms(passes: int = 5, count: int = 40) -> Figures:
    """Times what the host does for one architecture of `deepnets`.

    Args:
        passes: Passes, each over architectures of its own.
        count: Architectures of a pass.

    Returns:
        Milliseconds on the clock, all together and by part, and of core time, which other
        processes on the machine change little: of a pass the mean, of the passes the median.
    """
    space, module = get_space("deepnets"), HyperInitializer(num_classes=CLASSES)
    parts = ("sampling", "program", "graph_and_distances", "batching")
    rows, cores = [], []
    # The first pass fills the caches of block layouts and does not count.
    for number in range(passes + 1):
        times, core = np.zeros(len(parts)), time.thread_time()
        for index in range(FRESH + number * count, FRESH + (number + 1) * count):
            marks = [time.perf_counter()]
            arch = space.sample("train", index)
            marks.append(time.perf_counter())
            network = space.build(arch, CLASSES)
            marks.append(time.perf_counter())
            graph = build_graph(network)
            marks.append(time.perf_counter())
            meta_batch([network], [graph], module)
            marks.append(time.perf_counter())
            times += np.diff(marks)
        rows.append(times / count * 1e3)
        cores.append((time.thread_time() - core) / count * 1e3)
    middle = np.median(np.array(rows[1:]), axis=0)
    return {
        "host_ms_per_architecture": float(middle.sum()),
        "host_core_ms_per_architecture": float(np.median(cores[1:])),
        "host_ms_by_part": dict(zip(parts, middle.tolist(), strict=True)),
    }


if __name__ == "__main__":
    share = compiled_share(one_width(get_space("deepnets")), 10_000, 1_000)
    print(json.dumps({**share, **host_ms()}, indent=2))
