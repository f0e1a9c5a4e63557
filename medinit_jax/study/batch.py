"""A study on more than one machine: a list of commands, SLURM arrays, or a Ray cluster."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medinit_jax.core.errors import UsageError
from medinit_jax.study.job import Job
from medinit_jax.study.runner import Outcome, Report, blocked_by, finished, run_jobs

_SLURM = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --output={folder}/{name}-%a.log
commands=(
{commands}
)
eval "${{commands[$SLURM_ARRAY_TASK_ID]}}"
"""


def levels(jobs: Sequence[Job], jobs_dir: Path) -> list[list[Job]]:
    """Divides what is not done into levels, each of which needs only the ones before.

    Args:
        jobs: The jobs of a study.
        jobs_dir: Where their folders are.
    """
    left = [job for job in jobs if not job.is_done(jobs_dir)]
    found: list[list[Job]] = []
    while left:
        ids = {job.id for job in left}
        ready = [job for job in left if not ids.intersection(job.needs)]
        if not ready:
            raise AssertionError("the needs of jobs form a circle")
        found.append(ready)
        left = [job for job in left if job not in ready]
    return found


def command(job: Job, argv: Sequence[str]) -> str:
    """Returns the command that runs one job of the study that `argv` started.

    Args:
        job: The job.
        argv: The study's own command line, without a choice of runner or job.
    """
    kept, words = [], list(argv[1:])
    while words:
        word = words.pop(0)
        key, equals, _ = word.removeprefix("-").removeprefix("-").partition("=")
        if key not in ("config.runner", "config.only"):
            kept.append(word)
        elif not equals:
            # The value is the word that follows.
            del words[:1]
    words = [sys.executable, "-m", "medinit_jax.main", *kept, f"--config.only={job.id}"]
    return shlex.join(words)


def write_commands(jobs: Sequence[Job], jobs_dir: Path, workdir: Path, argv: Sequence[str]) -> Path:
    """Writes `commands.txt`: a command per line, levels parted by an empty line.

    Lines of a level may run at the same time, on any machine that sees `jobs_dir`.

    Returns:
        The file.
    """
    path = workdir / "commands.txt"
    parts = ["\n".join(command(job, argv) for job in level) for level in levels(jobs, jobs_dir)]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def write_slurm(jobs: Sequence[Job], jobs_dir: Path, workdir: Path, argv: Sequence[str]) -> Path:
    """Writes an array script per level and `submit.sh`, which lets each wait for the one before.

    Returns:
        `submit.sh`.
    """
    folder = workdir / "slurm"
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["#!/bin/bash", "set -e"]
    for number, level in enumerate(levels(jobs, jobs_dir)):
        script = folder / f"level{number}.sbatch"
        commands = "\n".join(shlex.quote(command(job, argv)) for job in level)
        script.write_text(
            _SLURM.format(
                name=f"level{number}", last=len(level) - 1, folder=folder, commands=commands
            ),
            encoding="utf-8",
        )
        # Whatever became of the level before: what failed there blocks only what needs it.
        wait = f"--dependency=afterany:$level{number - 1} " if number else ""
        lines.append(f"level{number}=$(sbatch --parsable {wait}{shlex.quote(str(script))})")
    submit = folder / "submit.sh"
    submit.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return submit


def run_on_ray(
    jobs: Sequence[Job],
    jobs_dir: Path,
    report: Report,
    cores: float = 1.0,
    failed: Mapping[str, Outcome] | None = None,
) -> dict[str, Outcome]:
    """Runs jobs on a Ray cluster, level by level; every node has to see `jobs_dir`.

    Args:
        jobs: What is to be done.
        jobs_dir: Where their folders are.
        report: Told the outcomes so far.
        cores: That one job asks for.
        failed: Jobs that are not tried again.

    Raises:
        UsageError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError(
            "config.runner=ray needs Ray, which is not installed; install it with: "
            "pip install 'medinit_jax[ray]', or set config.runner=local."
        ) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    remote = ray.remote(num_cpus=cores)(_one)
    outcomes = {job.id: finished(job, jobs_dir) for job in jobs if job.is_done(jobs_dir)}
    outcomes |= failed or {}
    for level in levels(jobs, jobs_dir):
        running: dict[Any, Job] = {}
        for job in level:
            if job.id in outcomes:
                continue
            blocked = blocked_by(job, outcomes)
            if blocked:
                outcomes[job.id] = blocked
            else:
                running[remote.remote(job, str(jobs_dir.absolute()))] = job
        waiting = list(running)
        while waiting:
            ready, waiting = ray.wait(waiting)
            job = running[ready[0]]
            outcomes[job.id] = Outcome(*ray.get(ready[0]))
            report(outcomes, job.name)
    return outcomes


def _one(job: Job, jobs_dir: str) -> tuple[str, str]:
    """Runs one job in a worker."""
    status, reason = run_jobs([job], Path(jobs_dir))[job.id]
    return status, reason
