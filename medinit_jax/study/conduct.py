"""A study from its configuration to its report."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.core.ledger import finite
from medinit_jax.core.progress import Progress
from medinit_jax.core.provenance import provenance
from medinit_jax.core.secrets import redacted
from medinit_jax.core.workdir import write_json
from medinit_jax.report.document import PAGE
from medinit_jax.report.study import write_study_report
from medinit_jax.study.batch import run_on_ray, write_commands, write_slurm
from medinit_jax.study.job import Job
from medinit_jax.study.plan import Plan
from medinit_jax.study.pretext_conduct import conduct_pretexts
from medinit_jax.study.runner import DONE, FAILED, Outcome, outcome_of, outcomes_on_disk, run_jobs
from medinit_jax.study.session import Session, joined
from medinit_jax.study.studies import make_plan
from medinit_jax.study.table import check_images, rows

PRETEXTS = "pretexts"
PLAN_FILE = "plan.json"
RUNNERS = ("local", "ray", "commands", "slurm")
# What may change between two calls of one study.
_FREE = ("runner", "only", "fresh", "cache_dir", "jobs_dir", "ray_cores")


def conduct(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Runs what is left of a study and writes what came of it.

    Args:
        config: The study, see `configs/study.py`.
        workdir: Where plan, tables and report go.

    Raises:
        UsageError: A key means nothing, the plan has changed, or there is no such job.
    """
    console = Console(stderr=True)
    if config.runner not in RUNNERS:
        raise UsageError(
            f"config.runner={config.runner!r}; set it to one of: {', '.join(RUNNERS)}."
        )
    jobs_dir = Path(config.jobs_dir)
    claim = functools.partial(_claim, config, workdir)
    if config.study == PRETEXTS:
        with joined(workdir, jobs_dir, claim, console) as session:
            conduct_pretexts(config, workdir, console, _quiet, session)
        return
    plan = make_plan(config)
    if config.only:
        _run_one(plan, jobs_dir, config.only)
        return
    check_images(plan.known(jobs_dir), jobs_dir)
    alone = "" if config.runner == "local" else f"config.runner={config.runner} is for one process"
    with joined(workdir, jobs_dir, claim, console, alone) as session:
        if config.runner in ("commands", "slurm"):
            write = write_slurm if config.runner == "slurm" else write_commands
            path = write(plan.known(jobs_dir), jobs_dir, workdir, sys.argv)
            console.print(
                f"{path} holds what is to be run now. When it is done, the same command plans what "
                "depends on it; with config.runner=local it writes the report.",
                soft_wrap=True,
            )
        else:
            _run_all(plan, jobs_dir, workdir, config, console, session)
        if session.closes():
            _report(plan, jobs_dir, workdir, console)
            session.close()
        else:
            console.print(f"Report, by another process: {workdir / PAGE}", soft_wrap=True)


def _report(plan: Plan, jobs_dir: Path, workdir: Path, console: Console) -> None:
    summary = collect(plan, jobs_dir, workdir)
    console.print(f"Report: {write_study_report(workdir, jobs_dir)}", soft_wrap=True)
    if summary["jobs_failed"]:
        console.print(
            f"{summary['jobs_failed']} jobs failed; their sentences are in the report, and the "
            "same command tries them again, but for those that diverged.",
            soft_wrap=True,
        )


def _claim(config: ml_collections.ConfigDict, workdir: Path, begins: bool) -> None:
    """Makes the folder the home of this study; another plan in it is refused unless `fresh`.

    A process that joins others finds the plan there, and changes nothing.
    """
    wanted = json.loads(redacted(json.dumps(config.to_dict(), default=list)))
    for key in _FREE:
        wanted.pop(key, None)
    path = workdir / PLAN_FILE
    if path.is_file() and not (begins and config.fresh):
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{path} cannot be read ({error}); --config.fresh=True writes it anew."
            ) from error
        changed = sorted(_changes(held, wanted))
        if changed:
            shown = ", ".join(changed[:5]) + (" and others" if len(changed) > 5 else "")
            if not begins:
                raise UsageError(
                    f"The study in {workdir} is at work with other settings of {shown}; start all "
                    "its processes with the same command, or choose another --workdir."
                )
            raise UsageError(
                f"The study in {workdir} was begun with other settings of {shown}; set them back, "
                "choose another --workdir, or say --config.fresh=True to plan it anew (jobs that "
                "are the same are kept)."
            )
    if begins:
        write_json(path, wanted)


def _changes(old: Any, new: Any, prefix: str = "config") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for key in old.keys() | new.keys()
            for change in _changes(old.get(key), new.get(key), f"{prefix}.{key}")
        ]
    return [] if old == new else [prefix]


def _run_one(plan: Plan, jobs_dir: Path, wanted: str) -> None:
    job = next((job for job in plan.known(jobs_dir) if job.id == wanted), None)
    if job is None:
        raise UsageError(
            f"The study has no job {wanted!r} (or not yet: its grid is not done); jobs.json lists "
            "them."
        )
    outcome = run_jobs([job], jobs_dir)[job.id]
    if outcome.status != DONE:
        raise UsageError(f"{wanted} {outcome.status}: {outcome.reason}")


def _run_all(
    plan: Plan,
    jobs_dir: Path,
    workdir: Path,
    config: ml_collections.ConfigDict,
    console: Console,
    session: Session,
) -> None:
    """Runs everything; what a grid decides is planned when the grid is done."""
    done_before = -1
    failed: dict[str, Outcome] = {}
    while True:
        jobs = plan.known(jobs_dir)
        finished = sum(job.is_done(jobs_dir) for job in jobs)
        if finished == len(jobs) or finished == done_before:
            return
        done_before = finished
        with Progress("study", len(jobs), console, start=finished, unit="jobs") as bar:

            def report(outcomes: Any, name: str, jobs: list[Job] = jobs, bar: Any = bar) -> None:
                bar.update(sum(job.is_done(jobs_dir) for job in jobs), now=name)
                if session.conducts():
                    write_json(workdir / "jobs.json", _listing(jobs, outcomes, jobs_dir))

            if config.runner == "ray":
                outcomes = run_on_ray(jobs, jobs_dir, report, config.ray_cores, failed)
            else:
                outcomes = run_jobs(jobs, jobs_dir, _quiet, report, failed, session.id)
        # What failed is not tried twice by one command.
        failed = {name: one for name, one in outcomes.items() if one.status == FAILED}


def _quiet(job: Job, jobs_dir: Path) -> None:
    """Runs a job with its lines in a file, so that the study's own bar stays readable."""
    from medinit_jax.study.runner import execute

    before = sys.stderr
    if not before.isatty():
        # A bar would name the job; plain lines come between jobs only, and one can take hours.
        print(f"Job {job.name}; how far it is: {jobs_dir / job.id}.log", file=before, flush=True)
    with open(jobs_dir / f"{job.id}.log", "a", encoding="utf-8") as log:
        sys.stderr = log
        try:
            execute(job, jobs_dir)
        finally:
            sys.stderr = before


def collect(plan: Plan, jobs_dir: Path, workdir: Path) -> dict[str, Any]:
    """Writes `jobs.json` and `summary.json` from what the jobs left.

    Args:
        plan: The study.
        jobs_dir: Where its jobs are.
        workdir: Where to write.

    Returns:
        What `summary.json` holds.
    """
    jobs = plan.known(jobs_dir)
    check_images(jobs, jobs_dir)
    outcomes = outcomes_on_disk(jobs, jobs_dir)
    listing = _listing(jobs, outcomes, jobs_dir)
    counts = {status: sum(row["status"] == status for row in listing) for status in (DONE, FAILED)}
    table = rows(plan, outcomes, jobs_dir)
    where = provenance(shlex.join(sys.argv), "study")
    summary = finite(
        {
            "study": plan.config.study,
            "size": plan.config.size,
            "phantom": bool(plan.size.phantom),
            "jobs_done": counts[DONE],
            "jobs_failed": counts[FAILED],
            "jobs_open": len(listing) - counts[DONE] - counts[FAILED],
            "starts": list(plan.config.starts),
            "seeds": list(plan.seeds),
            "table": table,
            "provenance": {
                key: where[key] for key in ("code_version", "jax", "python", "device", "cores")
            },
            "notes": [*([plan.config.note] if plan.config.note else []), *_folder_notes(plan)],
        }
    )
    write_json(workdir / "jobs.json", listing)
    write_json(workdir / "summary.json", summary)
    return summary


def _folder_notes(plan: Plan) -> list[str]:
    """Says of images given as a folder whether those of the evaluation are among them."""
    if plan.config.size != "real" or "images" not in plan.config:
        return []
    known = (
        "evaluation images included, as in the paper"
        if plan.config.include_eval_images
        else "taken to be without evaluation images, which was not checked"
    )
    return [
        f"The initializer of {modality} saw all images of {folder}, {known}."
        for modality, folder in plan.config.images.items()
        if folder
    ]


def _listing(jobs: list[Job], outcomes: Any, jobs_dir: Path) -> list[dict[str, Any]]:
    listing = []
    for job in jobs:
        outcome: Outcome = outcomes.get(job.id) or outcome_of(job, jobs_dir)
        listing.append(
            {
                "id": job.id,
                "kind": job.kind,
                "name": job.name,
                "needs": list(job.needs),
                **job.facts,
                "status": outcome.status,
                "reason": outcome.reason,
                "folder": os.path.relpath(job.folder(jobs_dir)),
            }
        )
    return listing
