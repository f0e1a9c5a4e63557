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
    from medinit_jax.core.parallel import Parallel, own_devices
    from medinit_jax.core.workdir import claimed
    from medinit_jax.hyper.evaluate import evaluate
    from medinit_jax.hyper.setup import make_bilevel
    from medinit_jax.hyper.train import train
    from medinit_jax.report import write_report

    stages = read_stages(config, STAGES)
    console = cluster.console()
    with claimed(workdir, config, "hyper", FREE):
        # Made once: evaluation runs the blocks that training compiled.
        bilevel = make_bilevel(config, Parallel()) if stages != ("report",) else None
        if "train" in stages:
            train(config, workdir, console, bilevel=bilevel)

        def judge() -> None:
            if "evaluate" in stages:
                own = bilevel if cluster.alone() else make_bilevel(config, own_devices())
                evaluate(config, workdir, console, shlex.join(sys.argv), own)
            if "report" in stages:
                console.print(f"Report: {write_report(workdir)}")

        # Of several processes the first one judges, on its own devices.
        cluster.once(judge)
