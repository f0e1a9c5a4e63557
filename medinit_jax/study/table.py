"""What the runs of a study say together: a row per cell, from their summaries alone."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medinit_jax.core.errors import UsageError
from medinit_jax.data.tasks import TASKS
from medinit_jax.downstream.metrics import mean_sd, paired_difference
from medinit_jax.study.job import Job
from medinit_jax.study.paired_images import compare_on_images
from medinit_jax.study.plan import Cell, Plan
from medinit_jax.study.runner import DONE, Outcome

# A start has converged where it reaches this share of the best that random initialization reaches.
CONVERGED = 0.95


def rows(plan: Plan, outcomes: Mapping[str, Outcome], jobs_dir: Path) -> list[dict[str, Any]]:
    """Returns a row per cell, as `summary.json` of a study holds them.

    Args:
        plan: The study.
        outcomes: Of its jobs.
        jobs_dir: Where they are.
    """
    table = [_row(plan, cell, outcomes, jobs_dir) for cell in plan.cells]
    by_start = {
        (row["task"], row["model"], row["fraction"]): row
        for row in table
        if row["start"] == "random"
    }
    for row in table:
        random = by_start.get((row["task"], row["model"], row["fraction"]))
        _compare(row, random)
        row["on_images"] = _on_images(row, random, jobs_dir)
    return table


def check_images(jobs: Sequence[Job], jobs_dir: Path) -> None:
    """Raises UsageError where runs of one task that are done were judged on different images.

    Where the images lie is no part of a job's id, so that a study can move; what they are is.
    """
    first: dict[Any, tuple[Job, str]] = {}
    for job in jobs:
        found = job.summary(jobs_dir).get("data", {}).get("test", {}).get("sha256")
        if not found:
            continue
        key = (job.config["task"], job.config["protocol"]["fold"])
        other, checksum = first.setdefault(key, (job, found))
        if found != checksum:
            raise UsageError(
                f"{job.id} and {other.id} were judged on different images of {key[0]}; remove the "
                "folder of the older one from config.jobs_dir, so that it is run again, or give "
                "the new images a config.jobs_dir of their own."
            )


def _row(plan: Plan, cell: Cell, outcomes: Mapping[str, Outcome], jobs_dir: Path) -> dict[str, Any]:
    task = TASKS[cell.task]
    jobs = [] if plan.absent(cell) else plan.finals(cell, jobs_dir)
    summaries = [(job, job.summary(jobs_dir)) for job in jobs]
    found = [(job, summary) for job, summary in summaries if summary]
    folds = len(plan.folds(cell))
    row: dict[str, Any] = {
        **cell._asdict(),
        "modality": task.modality,
        "metric": task.metric,
        "jobs": [job.id for job in jobs],
        "seeds": [seed for seed, group in _by_seed(found).items() if len(group) == folds],
        "folds": folds,
        "learning_rate": jobs[0].config["optim"]["learning_rate"] if jobs else None,
        "diverged": sum(bool(summary["diverged"]) for _, summary in found),
        "seconds": sum(summary["seconds"] for _, summary in found),
        "reason": _reason(plan, cell, jobs, outcomes, jobs_dir),
    }
    for which in ("best", "last"):
        row[which] = _spread(_means(found, folds, (which, "test", "metric")))
    row["validation"] = _spread(_means(found, folds, ("best", "validation")))
    row["epochs_best"] = [summary["best"]["epoch"] for _, summary in found]
    row["interval"] = _interval(found)
    row["curve"] = _curve([summary["epochs"] for _, summary in found])
    row["curves"] = [
        [(epoch["epoch"], epoch["validation"]) for epoch in summary["epochs"]]
        for _, summary in found
    ]
    row["cam"] = _cams([summary.get("cam") for _, summary in found])
    return row


def _reason(
    plan: Plan,
    cell: Cell,
    jobs: Sequence[Job],
    outcomes: Mapping[str, Outcome],
    jobs_dir: Path,
) -> str:
    absent = plan.absent(cell)
    if absent:
        return absent
    for job in jobs or plan.grid_jobs(cell):
        outcome = outcomes.get(job.id)
        if not jobs and job.is_done(jobs_dir):
            # A point that diverged is a result of the grid.
            continue
        if outcome is not None and outcome.status != DONE:
            return f"{outcome.status}: {outcome.reason}" if outcome.reason else outcome.status
        if outcome is None and not job.is_done(jobs_dir):
            return "not run yet"
    if not jobs:
        return f"every point of the grid diverged: sizes.{plan.config.size} needs a smaller one"
    return ""


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    if not known:
        return {"values": list(values), "mean": None, "sd": None}
    mean, sd = (float(x) for x in mean_sd(known))
    return {"values": list(values), "mean": mean, "sd": None if math.isnan(sd) else sd}


def _by_seed(found: Sequence[tuple[Job, Mapping[str, Any]]]) -> dict[int, list[Mapping[str, Any]]]:
    groups: dict[int, list[Mapping[str, Any]]] = {}
    for job, summary in found:
        groups.setdefault(job.facts["seed"], []).append(summary)
    return groups


def _means(
    found: Sequence[tuple[Job, Mapping[str, Any]]],
    folds: int,
    keys: Sequence[str],
) -> list[float | None]:
    """Returns a figure of every seed whose folds are all done, the mean over them.

    Args:
        found: Runs and their summaries.
        folds: How many a seed has.
        keys: Where in a summary the figure lies.
    """
    values = []
    for group in _by_seed(found).values():
        held: list[Any] = [functools.reduce(operator.getitem, keys, one) for one in group]
        if len(group) == folds:
            known = [value for value in held if value is not None]
            values.append(sum(known) / folds if len(known) == folds else None)
    return values


def _interval(found: Sequence[tuple[Job, Mapping[str, Any]]]) -> list[float] | None:
    """Returns the mean ends of the runs' bootstrap intervals over test images."""
    ends = [
        (summary["best"]["test"]["low"], summary["best"]["test"]["high"]) for _, summary in found
    ]
    if not ends or any(end is None for pair in ends for end in pair):
        return None
    return [sum(pair[i] for pair in ends) / len(ends) for i in (0, 1)]


def _curve(courses: Sequence[Sequence[Mapping[str, Any]]]) -> list[list[float | None]]:
    """Returns [epoch, mean, deviation] of the validation figure, of epochs that all seeds reached.

    Where some have stopped early, a mean over the rest would be one over other networks.
    """
    by_epoch: dict[int, list[float]] = {}
    for course in courses:
        for row in course:
            if row["validation"] is not None:
                by_epoch.setdefault(row["epoch"], []).append(row["validation"])
    points: list[list[float | None]] = []
    for epoch, values in sorted(by_epoch.items()):
        if len(values) < len(courses):
            continue
        spread = _spread(values)
        points.append([epoch, spread["mean"], spread["sd"]])
    return points


def _cams(figures: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    known = [figure for figure in figures if figure]
    if not known:
        return None
    merged: dict[str, Any] = {"epochs": known[0]["epochs"]}
    for name in ("energy", "iou", "drift"):
        columns = [figure[name] for figure in known if name in figure]
        if columns:
            merged[name] = [sum(column) / len(column) for column in zip(*columns, strict=True)]
    return merged


def _on_images(
    row: Mapping[str, Any], random: Mapping[str, Any] | None, jobs_dir: Path
) -> dict[str, Any] | None:
    if random is None or row["start"] == "random" or row["seeds"] != random["seeds"]:
        return None
    if not row["seeds"] or len(row["seeds"]) * row["folds"] < len(row["jobs"]):
        return None
    folds = row["folds"]
    own, other = (
        [
            [jobs_dir / job for job in one["jobs"][first : first + folds]]
            for first in range(0, len(one["jobs"]), folds)
        ]
        for one in (row, random)
    )
    return compare_on_images(own, other, row["metric"])


def _compare(row: dict[str, Any], random: Mapping[str, Any] | None) -> None:
    """Adds the paired difference to random, and how soon the row reaches most of random's best."""
    row["difference"] = row["epochs_to_95"] = None
    if random is None:
        return
    bests = [max((v for _, v in c if v is not None), default=None) for c in random["curves"]]
    if row["curves"] and row["seeds"] == random["seeds"] and None not in bests:
        row["epochs_to_95"] = [
            next((e for e, v in curve if v is not None and v >= CONVERGED * best), None)
            for curve, best in zip(row["curves"], map(float, bests), strict=True)  # pyright: ignore
        ]
    if row["start"] == "random" or row["seeds"] != random["seeds"]:
        return
    for which in ("best", "last"):
        pairs = list(zip(row[which]["values"], random[which]["values"], strict=True))
        if pairs and all(None not in pair for pair in pairs):
            found = paired_difference([own for own, _ in pairs], [other for _, other in pairs])
            row["difference"] = row["difference"] or {}
            row["difference"][which] = {
                key: None if isinstance(value, float) and math.isnan(value) else value
                for key, value in found._asdict().items()
            }
