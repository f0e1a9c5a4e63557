"""Fine-tuning: one start, one network, one task, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console

from medinit_jax.core import cluster

# What may differ between the runs of one workdir: what no figure depends on.
FREE = ("cache_dir", "note", "profile", "data.data_dir", "data.cache_mb", "data.workers",
        "optim.sharded", "train.devices", "train.checkpoint_seconds", "train.checkpoints_kept",
        "train.checkpoints_verified")  # fmt: skip


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Fine-tunes, or goes on where an earlier run stopped, and says what was reached.

    Args:
        config: The experiment, see `configs/finetune.py`.
        workdir: Where everything is written.

    Raises:
        UsageError: Something the user can mend.
    """
    from medinit_jax.core.workdir import claimed, is_finished
    from medinit_jax.finetune.train import Tuning

    console = cluster.console()
    with claimed(workdir, config, "finetune", FREE):
        if not is_finished(workdir, console):
            announce(Tuning(config, workdir, console).run(), console)


def announce(summary: Mapping[str, Any], console: Console) -> None:
    """Shows what a fine-tuning reached.

    Args:
        summary: As `summary.json` holds it.
        console: Where it is shown.
    """
    for name in ("best", "last"):
        row = summary[name]
        figure = row["test"]
        console.print(
            f"{name} epoch {row['epoch']}: {summary['metric']} {_shown(figure['metric'])} "
            f"[{_shown(figure['low'])}, {_shown(figure['high'])}] on "
            f"{summary['images']['test']} test images, validation {_shown(row['validation'])}",
            highlight=False,
            soft_wrap=True,
        )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
