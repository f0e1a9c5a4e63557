"""Route 1: the hyper-initializer, a graph hypernetwork that writes the parameters of networks."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import ml_collections

STAGES = ("train", "evaluate", "report")
# What may differ between the runs of one workdir: what training does not depend on.
FREE = ("stages", "cache_dir", "note", "evaluate", "profile", "optim.sharded", "train.spread",
        "train.checkpoints_kept", "train.checkpoints_verified")  # fmt: skip


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Runs the stages that `config.stages` names: train, evaluate, report.

    Args:
        config: The experiment, see `configs/hyper.py`.
        workdir: Where everything is written; a second run goes on where the first stopped.

    Raises:
        UsageError: Something the user can mend.
    """
    # Imported when run: the package's readers (`load`, `initialize`) need none of it.
    from medinit_jax.core import cluster
    from medinit_jax.core.config import read_stages
    from medinit_jax.core.parallel import Parallel
    from medinit_jax.core.workdir import claimed
    from medinit_jax.hyper.evaluate import evaluate
    from medinit_jax.hyper.setup import make_bilevel
    from medinit_jax.hyper.train import train
    from medinit_jax.hyper.trials import with_best_seed
    from medinit_jax.report import write_report

    stages = read_stages(config, STAGES)
    console = cluster.console()
    with claimed(workdir, config, "hyper", FREE):
        bilevel = None
        if "train" in stages:
            bilevel = make_bilevel(config, Parallel())
            own = with_best_seed(config, workdir, console, bilevel)
            train(own, workdir, console, bilevel=bilevel._replace(config=own))
        if "evaluate" in stages:
            # One process runs the blocks that training compiled; of several, each has its own.
            own = bilevel if cluster.alone() else None
            evaluate(config, workdir, console, shlex.join(sys.argv), own)
        if "report" in stages:
            page = cluster.once(lambda: str(write_report(workdir)))
            console.print(f"Report: {page}")
