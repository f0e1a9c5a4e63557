"""Times what a user waits for: from a loaded initializer to an initialized ResNet.

    python benchmarks/initialize.py
    python benchmarks/initialize.py --json
    python benchmarks/initialize.py --only linen --repeats 5

The initializer is untrained, has the size of the 224 px configurations (hidden size 32, tiles (64,
64, 11, 11)), and is saved and loaded as a trained one. Every measurement has a process of its own
(`initialize_once.py`), which first imports and loads what it needs. A model is traced, its graph
built, its parameters predicted and written; then the same again, with the graph kept. The first run
of all finds the compilation cache empty. For the figures of a model the cache holds what an
earlier process compiled, and all else is cold: nothing was traced, predicted or loaded from the
cache before in the process. PyTorch models are measured where torchvision is installed. What each
figure means is told in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
from architectures import Figures
from bilevel import experiment, machine, table

from medinit_jax.hyper.hypernetwork import from_config, init_theta
from medinit_jax.hyper.publish import publish

CHILD = Path(__file__).with_name("initialize_once.py")
MODELS = ("linen_resnet50", "linen_resnet101", "zoo_resnet50", "torch_resnet50", "torch_resnet101")
# Of the second call in a process: a Flax model's graph is kept, a PyTorch model is exported anew.
SECOND = {"linen": "cached", "zoo": "cached", "torch": "again"}


def untrained(folder: Path) -> None:
    """Writes an untrained initializer as training writes a trained one."""
    config = experiment("deepnets", 64)
    module = from_config(config.hyper.to_dict())
    theta = jax.device_get(init_theta(module, jax.random.key(0))["params"])
    publish(config, folder, module, theta, {})


def measured(model: str, folder: Path, cache: Path) -> dict[str, float]:
    """Runs `initialize_once.py` in a new process; returns its times and that of the process."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, str(CHILD), model, str(folder)]
    started = time.perf_counter()
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    process = time.perf_counter() - started
    times = json.loads(run.stdout)
    return {**times, "process_s": process - times["again_s"]}


def benchmark(options: argparse.Namespace, folder: Path) -> Figures:
    """Runs everything; `options` are those of the command line, `folder` is empty."""
    load = os.getloadavg()[0]
    untrained(folder)
    models = [name for name in MODELS if name.startswith(options.only)]
    if importlib.util.find_spec("torchvision") is None:
        models = [name for name in models if not name.startswith("torch")]
    figures: Figures = {}
    if MODELS[0] in models:
        fresh = [measured(MODELS[0], folder, folder / f"c{i}") for i in range(options.repeats)]
        figures["fresh_process_s"] = statistics.median(run["process_s"] for run in fresh)
        figures["fresh_process_import_s"] = statistics.median(run["import_s"] for run in fresh)
    for name in models:
        measured(name, folder, folder / "cache")
        runs = [measured(name, folder, folder / "cache") for _ in range(options.repeats)]
        second = f"{name}_{SECOND[name.split('_')[0]]}_s"
        figures[f"{name}_s"] = statistics.median(run["first_s"] for run in runs)
        figures[second] = statistics.median(run["again_s"] for run in runs)
    loads = {"before": load, "after": os.getloadavg()[0]}
    return {
        **figures,
        "work": f"median of {options.repeats} processes",
        "machine": machine(),
        "load_average": loads,
    }


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", default="", help="only models whose name starts so")
    parser.add_argument("--repeats", type=int, default=3, help="processes per figure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = benchmark(options, Path(folder))
    print(json.dumps(figures, indent=2) if options.json else "\n".join(table(figures)))


if __name__ == "__main__":
    main()
