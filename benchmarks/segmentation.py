"""How much of the time of a segmentation at native size is spent in the network.

    python benchmarks/segmentation.py [--json] [--width 16] [--window 128] [--repeats 3]

Images of the sizes of DRIVE and of REFUGE's test set are cut into windows, run, and put together
again. The same batches go through the compiled network alone, in turn with the whole; the share is
the median of the one over that of the other.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from typing import Any

import jax
import numpy as np

from medinit_jax.core import compilation_cache
from medinit_jax.downstream import windows
from medinit_jax.finetune.evaluate import compiled
from medinit_jax.models import zoo
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.statistics import initial_statistics

SIZES = {"drive": (584, 565, 4), "refuge": (1634, 1634, 1)}


def measure(height: int, width: int, count: int, options: argparse.Namespace) -> dict[str, float]:
    """Returns seconds per image, windows per image, and the network's share of the time."""
    network = zoo.build("unet", 2, (options.window, options.window, 3), width=options.width)
    params = initial_parameters(network.program, jax.random.key(0))
    statistics_ = initial_statistics(network.program)
    run = functools.partial(compiled(network), params, statistics_)  # pyright: ignore
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(height, width, 3)).astype(np.float32) for _ in range(count)]
    batches: list[np.ndarray] = []

    def recorded(pixels: np.ndarray) -> Any:
        batches.append(pixels)
        return run(pixels)

    for _ in windows.predict_images(recorded, images, options.window, options.batch):
        pass
    whole, alone = [], []
    for _ in range(options.repeats):
        started = time.perf_counter()
        for _ in windows.predict_images(run, images, options.window, options.batch):
            pass
        whole.append(time.perf_counter() - started)
        started = time.perf_counter()
        for batch in batches:
            jax.block_until_ready(run(batch))
        alone.append(time.perf_counter() - started)
    total, network_time = statistics.median(whole), statistics.median(alone)
    return {
        "seconds_per_image": total / count,
        "windows_per_image": len(batches) * options.batch / count,
        "network_share": network_time / total,
    }


def main() -> None:
    """Measures both sizes and prints them."""
    parser = argparse.ArgumentParser(description="Share of segmentation time in the network")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    compilation_cache.enable("")
    found: dict[str, Any] = {name: measure(*size, options) for name, size in SIZES.items()}
    found["load_average"] = os.getloadavg()[0]
    if options.json:
        print(json.dumps(found))
        return
    print(f"{'images':<10}{'s per image':>12}{'windows':>10}{'in the network':>16}")
    for name in SIZES:
        row = found[name]
        print(
            f"{name:<10}{row['seconds_per_image']:>12.2f}{row['windows_per_image']:>10.0f}"
            f"{row['network_share']:>15.0%}"
        )


if __name__ == "__main__":
    main()
