"""Studies: many runs by plan, resumed, collected into one table and one page."""

from __future__ import annotations

from pathlib import Path

import ml_collections


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Runs a study, or goes on with it, and writes what came of it.

    Args:
        config: The study, see `configs/study.py`.
        workdir: Where plan, tables and report go; the runs lie in `config.jobs_dir`.

    Raises:
        UsageError: Something the user can mend.
    """
    from medinit_jax.study.conduct import conduct

    conduct(config, workdir)
