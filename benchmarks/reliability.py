"""What checkpoints cost a training, and how soon a run that was stopped takes its next step.

    python benchmarks/reliability.py [--json] [--steps 20] [--saves 5]

Both are of route 1. The cost is measured on the default experiment: seconds of a step, seconds
that a save keeps the loop waiting, and seconds until it is on disk, which a thread spends beside
the steps. The share is of the steps between two checkpoints of the default interval. The restart is
that of `configs/hyper.py:smoke` with a filled compilation cache: from the start of the process to
the first line of its curve.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import ml_collections
from rich.console import Console

from medinit_jax.core import compilation_cache, optim, state
from medinit_jax.core.checkpoint import Checkpoints
from medinit_jax.core.config import read_command_line
from medinit_jax.core.parallel import Parallel
from medinit_jax.data.catalog import batch_options
from medinit_jax.data.pipeline import Batches, BatchSource
from medinit_jax.hyper.hypernetwork import init_theta
from medinit_jax.hyper.setup import make_bilevel, open_sources
from medinit_jax.hyper.stream import ArchitectureStream
from medinit_jax.hyper.train import make_step

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "hyper.py"


def checkpoint_cost(steps: int, saves: int, data_dir: str) -> dict[str, float]:
    """Returns medians over steps and saves of the default experiment, and the shares."""
    config = read_command_line(
        ["reliability", f"--config={CONFIG}", f"--config.data.data_dir={data_dir}"]
        # Fewer images: a step takes as many of them.
        + [f"--config.data.patients.{split}=60" for split in ("train", "val", "test")]
    ).config
    compilation_cache.enable(config.cache_dir)
    bilevel = make_bilevel(config, Parallel())
    sources = open_sources(config, Console(stderr=True))
    images = bilevel.objective.images(config.train.batch_size)
    options = batch_options(config.data, config.seed, images)
    batches = Batches(BatchSource(sources["train"], options), 0)
    optimizer, _ = optim.create(
        ml_collections.ConfigDict({**config.optim, "total_steps": config.train.steps})
    )
    key = jax.random.key(config.seed)
    stream = ArchitectureStream(
        bilevel.space,
        bilevel.module,
        config.train.meta_batch,
        config.seed,
        # The same two networks again and again: what they need is compiled after the first step.
        2,
        10**6,
    )
    step_fn = make_step(bilevel, optimizer, stream, key)
    current = state.create(init_theta(bilevel.module, key)["params"], optimizer)
    current = bilevel.parallel.replicate(current)
    taken, blocked, written = [], [], []
    for number in range(steps + 4):
        began = time.perf_counter()
        current, metrics = step_fn(current, number, next(batches))
        jax.block_until_ready(metrics)
        taken.append(time.perf_counter() - began)
    with tempfile.TemporaryDirectory() as place:
        checkpoints = Checkpoints(Path(place) / "checkpoints")
        for number in range(saves):
            began = time.perf_counter()
            checkpoints.save(number, current, batches.get_state())
            blocked.append(time.perf_counter() - began)
            checkpoints.wait()
            written.append(time.perf_counter() - began)
        checkpoints.close()
    batches.close()
    stream.close()
    step, block, write = (statistics.median(x) for x in (taken[4:], blocked, written))
    between = config.train.checkpoint_every * step
    return {
        "step_seconds": step,
        "save_blocks_seconds": block,
        "save_seconds": write,
        "checkpoint_every": config.train.checkpoint_every,
        "checkpoint_overhead_share": block / between,
        # As if the thread that writes took all its time from the steps.
        "checkpoint_overhead_share_at_most": write / between,
    }


def restart(data_dir: str) -> dict[str, float]:
    """Returns seconds from starting a stopped run again to its next step."""
    with tempfile.TemporaryDirectory() as place:
        workdir = Path(place) / "run"
        command = [
            *(sys.executable, "-m", "medinit_jax.main", f"--config={CONFIG}:smoke"),
            f"--config.data.data_dir={data_dir}",
            *("--config.stages=train", "--config.train.steps=60", "--config.train.log_every=1"),
            f"--workdir={workdir}",
        ]
        _run_until(command, workdir, 4)
        # The second start finds in the cache what the steps after the stop need.
        _run_until(command, workdir, 10)
        began = time.perf_counter()
        _run_until(command, workdir, 1, stop=False)
        return {"restart_seconds": time.perf_counter() - began}


def _run_until(command: list[str], workdir: Path, lines: int, stop: bool = True) -> None:
    """Runs a command until its curve has so many more lines, then stops it."""
    before = _steps(workdir)
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=dict(os.environ))
    try:
        while _steps(workdir) < before + lines:
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.005)
        if stop:
            process.send_signal(signal.SIGTERM)
            process.wait()
    finally:
        process.kill()
        process.wait()


def _steps(workdir: Path) -> int:
    file = workdir / "metrics.jsonl"
    if not file.exists():
        return 0
    lines = [line for line in file.read_text().splitlines() if "train/loss" in line]
    return len(lines)


def main() -> None:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--data_dir", default="data", help="where phantoms are drawn")
    arguments = parser.parse_args()
    found = checkpoint_cost(arguments.steps, arguments.saves, arguments.data_dir)
    found |= restart(arguments.data_dir)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:36} {value:.6g}")


if __name__ == "__main__":
    main()
