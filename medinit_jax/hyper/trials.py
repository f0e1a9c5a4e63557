"""Which random seed a run trains with: of a few, the one whose first steps learn most.

How soon a hypernetwork leaves chance, and whether it does at all, depends on its seed as on little
else, and what begins badly ends badly (docs/results.md). So a run may begin a few times, for a few
steps each, and go on with the seed of the least training loss. No label is looked at.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from rich.console import Console

from medinit_jax.core import cluster
from medinit_jax.core.checkpoint import open_checkpoints
from medinit_jax.core.errors import Unfit, UsageError
from medinit_jax.core.ledger import finite
from medinit_jax.core.log import METRICS_FILE
from medinit_jax.core.workdir import write_json
from medinit_jax.downstream.protocol import fold_seed
from medinit_jax.hyper.setup import Bilevel
from medinit_jax.hyper.train import train

TRIALS_FILE, FOLDER = "trials.json", "trials"


def with_best_seed(
    config: ml_collections.ConfigDict, workdir: Path, console: Console, bilevel: Bilevel
) -> ml_collections.ConfigDict:
    """Begins `config.train.trials` times and returns the configuration of the best beginning.

    The first trial has `config.seed`. Trials that were stopped go on where they were; what they
    found stays in `trials.json`: "losses" by seed, in nats, and "seed", the one that was taken.

    Args:
        config: The experiment, see `configs/hyper.py`.
        workdir: The run's.
        console: Where progress is shown.
        bilevel: What trials run on.

    Returns:
        The configuration, or a copy that has the seed of the least mean loss over the second half
        of its trial.

    Raises:
        UsageError: There is no trial, or none could be trained.
    """
    count, steps = config.train.trials, min(config.train.trial_steps, config.train.steps)
    if count < 1 or steps < 1:
        raise UsageError(
            f"config.train.trials={count} of trial_steps={steps}: give at least 1 of both."
        )
    if count == 1:
        return config
    record = cluster.once(lambda: _read(workdir))
    if not record:
        losses = {}
        for number in range(count):
            seed = fold_seed(config.seed, "trial", number) if number else config.seed
            console.print(f"Trial {number + 1} of {count}, {steps} steps")
            own, folder = _seeded(config, seed), workdir / FOLDER / str(number)
            losses[seed] = _loss(own, folder, steps, console, bilevel)
        if not np.isfinite(min(losses.values())):
            raise UsageError(
                f"None of {count} trials could be trained; the lines above say why. Change that, "
                "or set config.train.trials=1 to see the first one end by itself."
            )
        record = {"seed": min(losses, key=losses.__getitem__), "losses": losses, "steps": steps}
        cluster.once(lambda: _keep(workdir, finite(record)))
    console.print(f"Seed {record['seed']} learns most in {steps} steps; training goes on with it.")
    return _seeded(config, record["seed"])


def _loss(
    config: ml_collections.ConfigDict,
    folder: Path,
    steps: int,
    console: Console,
    bilevel: Bilevel,
) -> float:
    """Returns the loss of a trial; one that cannot be trained has an infinite one."""
    folder.mkdir(parents=True, exist_ok=True)
    with config.unlocked():
        # What follows a training is not wanted of a trial.
        config.train.select, config.train.validate_every = "last", 0
    checkpoints = open_checkpoints(folder, config.train)
    done = max(checkpoints.steps(), default=0)
    checkpoints.close()
    if done < steps:
        own = bilevel._replace(config=config)
        try:
            train(config, folder, console, stop_after=steps - done, bilevel=own)
        except Unfit as error:
            console.print(str(error), highlight=False, markup=False, soft_wrap=True)
            return float(np.inf)
    return cluster.once(lambda: _late_loss(folder, steps))


def _late_loss(folder: Path, steps: int) -> float:
    """Returns the mean training loss over the second half of a trial; not finite is infinity."""
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    late = {
        line["step"]: line["train/loss"]
        for line in lines
        if "train/loss" in line and line["step"] > steps / 2
    }
    values = np.array([np.inf if loss is None else loss for loss in late.values()], float)
    return float(values.mean()) if np.isfinite(values).all() else np.inf


def _seeded(config: ml_collections.ConfigDict, seed: int) -> ml_collections.ConfigDict:
    own = config.copy_and_resolve_references()
    with own.unlocked():
        own.seed = seed
    return own.lock()


def _read(workdir: Path) -> dict[str, Any]:
    file = workdir / TRIALS_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _keep(workdir: Path, record: dict[str, Any]) -> None:
    write_json(workdir / TRIALS_FILE, record)
    shutil.rmtree(workdir / FOLDER)
