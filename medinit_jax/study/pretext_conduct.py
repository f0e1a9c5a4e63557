"""Runs the study of pretexts: choose, then confirm, then one summary and one page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from rich.console import Console

from medinit_jax.core.errors import UsageError
from medinit_jax.core.ledger import finite
from medinit_jax.core.log import METRICS_FILE
from medinit_jax.core.progress import Progress
from medinit_jax.core.provenance import provenance
from medinit_jax.core.workdir import write_json
from medinit_jax.report.document import PAGE
from medinit_jax.report.pretext_page import write_pretext_report
from medinit_jax.report.pretext_results import confirmed, confirmed_segmentation
from medinit_jax.report.workdir import read_metrics
from medinit_jax.study.job import Job
from medinit_jax.study.pretext_segmentation import on_images
from medinit_jax.study.pretexts import Pair, PretextPlan
from medinit_jax.study.runner import DONE, FAILED, outcomes_on_disk, run_jobs
from medinit_jax.study.session import Session
from medinit_jax.study.table import check_images

Run = Callable[[Job, Path], None]


def conduct_pretexts(
    config: ml_collections.ConfigDict,
    workdir: Path,
    console: Console,
    run: Run,
    session: Session,
) -> None:
    """Runs what is left of the study and writes `summary.json`, `jobs.json` and `report.html`.

    Args:
        config: The study, see `configs/pretext_study.py`.
        workdir: Where plan, summary and page go.
        console: Where progress is shown.
        run: Runs one job.
        session: The processes that run it together, of which one writes.

    Raises:
        UsageError: A key means nothing, or the runner is another than local.
    """
    if config.runner != "local":
        raise UsageError(
            f"config.runner={config.runner!r}: the study of pretexts runs its jobs here, one after "
            "another; set it to local (several processes with one config.jobs_dir share them)."
        )
    plan, jobs_dir = PretextPlan(config), Path(config.jobs_dir)
    jobs = _run(plan, "choose", plan.pairs, jobs_dir, console, run, session)
    scores = plan.scores(jobs_dir)
    missing = [pair for pair, score in scores.items() if score is None]
    # A pretext that collapsed is out; one that is only not done yet must not be passed over.
    status = outcomes_on_disk(jobs, jobs_dir)
    is_open = any(outcome.status not in (DONE, FAILED, "blocked") for outcome in status.values())
    winners = {} if is_open else plan.chosen(scores)
    if config.last == "confirm" and winners:
        jobs += _run(plan, "confirm", list(winners.values()), jobs_dir, console, run, session)
    check_images([job for job in jobs if job.kind == "finetune"], jobs_dir)
    if not session.closes():
        console.print(f"Report, by another process: {workdir / PAGE}", soft_wrap=True)
        return
    collect(plan, jobs, scores, winners, jobs_dir, workdir)
    for pair in missing:
        why = (
            "its runs left no figure, as labels are lacking or features are not finite"
            if all(job.is_done(jobs_dir) for job in plan.jobs("choose", [pair], jobs_dir))
            else "jobs.json says why"
        )
        console.print(f"Not judged: {' '.join(pair)}; {why}.", soft_wrap=True)
    for modality, pair in winners.items():
        console.print(f"{modality}: {pair.pretext} with the recipe {pair.recipe}", soft_wrap=True)
    console.print(f"Report: {write_pretext_report(workdir)}", soft_wrap=True)
    session.close()


def _run(
    plan: PretextPlan,
    phase: str,
    pairs: Sequence[Pair],
    jobs_dir: Path,
    console: Console,
    run: Run,
    session: Session,
) -> list[Job]:
    """Runs a phase and returns its jobs; what a grid decides is planned when the grid is done."""
    while True:
        jobs = plan.jobs(phase, pairs, jobs_dir)
        done = sum(job.is_done(jobs_dir) for job in jobs)
        with Progress(phase, len(jobs), console, start=done, unit="jobs") as bar:

            def report(outcomes: Any, now: str, jobs: list[Job] = jobs, bar: Any = bar) -> None:
                del outcomes
                bar.update(sum(job.is_done(jobs_dir) for job in jobs), now=now)

            run_jobs(jobs, jobs_dir, run, report, session=session.id)
        if len(plan.jobs(phase, pairs, jobs_dir)) == len(jobs):
            return jobs


def collect(
    plan: PretextPlan,
    jobs: Sequence[Job],
    scores: dict[Pair, float | None],
    winners: dict[str, Pair],
    jobs_dir: Path,
    workdir: Path,
) -> dict[str, Any]:
    """Writes `jobs.json` and `summary.json` from what the jobs left.

    Args:
        plan: The study.
        jobs: All jobs so far.
        scores: What the rule makes of every pair.
        winners: What was chosen.
        jobs_dir: Where the jobs are.
        workdir: Where to write.

    Returns:
        What `summary.json` holds. With one modality, what its confirmation found stands at the top,
        too.
    """
    config = plan.config
    outcomes = outcomes_on_disk(jobs, jobs_dir)
    confirmations = {}
    if config.last == "confirm":
        found = {name: _confirmation(plan, pair, jobs_dir) for name, pair in winners.items()}
        confirmations = {name: part for name, part in found.items() if part}
    listing = [
        {
            "id": job.id, "name": job.name, **job.facts,
            "status": outcomes[job.id].status, "reason": outcomes[job.id].reason,
        }
        for job in jobs
    ]  # fmt: skip
    first = next(iter(confirmations.values())) if len(confirmations) == 1 else {}
    command = shlex.join(sys.argv)
    summary = finite(
        {
            "study": config.study,
            "size": config.size,
            **first,
            "chosen": {name: pair._asdict() for name, pair in winners.items()},
            "scores": [{**p._asdict(), "score": score} for p, score in scores.items()],
            "confirmation": confirmations,
            "probe_curves": _probe_curves(jobs, jobs_dir),
            "rule": config.rule.to_dict(),
            "jobs_failed": sum(row["status"] == FAILED for row in listing),
            "provenance": provenance(command, "pretexts"),
            "command": command,
            "notes": [config.note] if config.note else [],
        }
    )
    write_json(workdir / "jobs.json", listing)
    write_json(workdir / "summary.json", summary)
    return summary


def _probe_curves(jobs: Sequence[Job], jobs_dir: Path) -> list[dict[str, Any]]:
    """Returns the transfer probe over the steps of every training that kept one."""
    curves = []
    for job in jobs:
        path = job.folder(jobs_dir) / METRICS_FILE
        if job.facts["role"] == "initializer" and "val/probe" in (found := read_metrics(path, [])):
            steps, values = (column.tolist() for column in found["val/probe"])
            facts = {key: job.facts[key] for key in ("modality", "pretext", "seed")}
            curves.append({**facts, "steps": steps, "auc": values})
    return curves


def _confirmation(plan: PretextPlan, pair: Pair, jobs_dir: Path) -> dict[str, Any]:
    """Returns what the confirmation of a pair found; {} if none of its runs is done."""
    config, seeds = plan.config, plan.seeds("confirm")
    evaluations = [plan.evaluation("confirm", pair, seed) for seed in seeds]
    summaries = [job.summary(jobs_dir) for job in evaluations if job.is_done(jobs_dir)]
    found: dict[str, Any] = {}
    if plan.tasks(pair.modality):
        plans = [plan.segmentation("confirm", pair, seed) for seed in seeds]
        done = [one for one in plans if one.is_done(jobs_dir)]
        if done:
            fractions = tuple(plan.size.segmentation.fractions)
            entries = [one.entries(jobs_dir) for one in done]
            found = confirmed_segmentation(entries, fractions)
            found["dice_on_images"] = on_images(done, jobs_dir)
    elif summaries:
        found = confirmed(
            summaries,
            tuple(plan.size.fractions),
            depth=config.depth,
            epoch=config.finetune_epoch,
            margin=config.margin,
            resamples=config.resamples,
        )
    if not found:
        return {}
    return {
        **pair._asdict(),
        **found,
        "diagnostics": [summary.get("diagnostics", {}) for summary in summaries],
        "initializers": [str(plan.training(pair, seed).folder(jobs_dir)) for seed in seeds],
    }
