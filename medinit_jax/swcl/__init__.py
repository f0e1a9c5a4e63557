"""Saliency-guided weak labels and the multi-label contrastive loss (arXiv 2108.02122): route 2."""

from __future__ import annotations

from pathlib import Path

import ml_collections

# What may differ between the runs of one workdir: what no figure depends on.
FREE = ("cache_dir", "note", "profile", "data.data_dir", "data.cache_mb", "data.workers",
        "optim.sharded", "train.log_every", "train.checkpoint_every", "train.checkpoints_kept",
        "train.checkpoints_verified")  # fmt: skip


# The same of the route `patches`.
SCORE_FREE = ("cache_dir", "note", "workers")


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Pretrains an encoder, or goes on where an earlier run stopped.

    Args:
        config: The experiment, see `configs/swcl.py`.
        workdir: Where everything is written.

    Raises:
        UsageError: Something the user can mend.
    """
    from medinit_jax.core import cluster
    from medinit_jax.core.workdir import claimed, is_finished
    from medinit_jax.report.pretrain_page import write_pretrain_report
    from medinit_jax.swcl.pretrain import Pretraining

    console = cluster.console()
    with claimed(workdir, config, "swcl", FREE):
        if is_finished(workdir, console):
            if cluster.first() and not (workdir / "report.html").is_file():
                write_pretrain_report(workdir)
            return
        summary = Pretraining(config, workdir, console).run()
        page = cluster.once(lambda: str(write_pretrain_report(workdir)))
    console.print(
        f"{summary['method']}: loss {summary['last'].get('loss', float('nan')):.4f} after "
        f"{summary['steps']} steps; the encoder is {workdir / 'model'}, which fine-tuning takes by "
        f"--config.init.start=encoder --config.init.path={workdir}. "
        f"Report: {page}",
        highlight=False,
        soft_wrap=True,
    )
