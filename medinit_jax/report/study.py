"""The page of a study: what is significant, tables, figures, and where each number is from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medinit_jax.core.errors import UsageError
from medinit_jax.report import start_tables
from medinit_jax.report import study_tables as tables
from medinit_jax.report.document import document, write_page
from medinit_jax.report.markup import Html, duration, element, fixed
from medinit_jax.report.pretraining import pretraining_sections
from medinit_jax.report.sections import section
from medinit_jax.report.study_kinds import KINDS, MANY
from medinit_jax.report.study_reading import headline, reading
from medinit_jax.report.study_sections import figure_section
from medinit_jax.report.tables import facts, flat, folded, table
from medinit_jax.report.workdir import images_of


def write_study_report(workdir: str | Path, jobs_dir: str | Path) -> Path:
    """Writes `report.html`, `tables/*.csv` and `tables/*.tex` from what a study left.

    Args:
        workdir: The study's folder, with `summary.json` and `jobs.json`.
        jobs_dir: Where its jobs are.

    Returns:
        The page: one file that loads nothing.

    Raises:
        UsageError: `summary.json` is missing or damaged.
    """
    folder, jobs_dir = Path(workdir), Path(jobs_dir)
    summary = _read(folder / "summary.json", dict)
    # Without it, figures have no links; the rest stays.
    jobs = _read(folder / "jobs.json", list) if (folder / "jobs.json").is_file() else []
    rows = tables.with_tests(summary["table"])
    _export(folder / "tables", summary, rows)
    return write_page(folder, render(summary, jobs, rows, folder, jobs_dir))


def _export(folder: Path, summary: Mapping[str, Any], rows: Sequence[tables.Row]) -> None:
    """Writes the tables for programs and papers."""
    folder.mkdir(exist_ok=True)
    study, starts = summary["study"], summary["starts"]
    judged = KINDS[study].judged
    tables.write_csv(folder / f"{study}.csv", rows, judged)
    latex = folder / f"{study}.tex"
    if judged == "validation":
        start_tables.write_validation_latex(latex, rows, starts)
    elif len(starts) >= MANY:
        start_tables.write_start_latex(latex, rows, starts)
        start_tables.write_start_csv(folder / f"{study}_by_start.csv", rows, starts)
    else:
        tables.write_latex(latex, rows, starts)


def _read(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); run the study first.") from error
    if not isinstance(found, kind):
        raise UsageError(f"{path} does not hold what a study leaves; run the study again.")
    return found


def render(
    summary: dict[str, Any],
    jobs: list[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    folder: Path,
    jobs_dir: Path,
) -> Html:
    """Returns the whole page.

    Args:
        summary: Of the study.
        jobs: Its `jobs.json`.
        rows: Of `study_tables.with_tests`.
        folder: Where the page will be; links start there.
        jobs_dir: Where the jobs are.
    """
    links = {job["id"]: _link(jobs_dir / job["id"], folder) for job in jobs}
    kind = KINDS[summary["study"]]
    return document(
        kind.title,
        _opening(summary, rows),
        figure_section(kind, rows, jobs_dir, summary["starts"]),
        section(
            "All figures",
            _figures(summary, rows, links),
            element(
                "p",
                "Bold: beats random initialization, p below 0.05 after Holm’s correction for "
                "all comparisons on this page. The paper’s figures are of other images "
                "wherever ours are phantoms, and are no target for them.",
            ),
            _differences(rows, len(summary["starts"])),
        ),
        pretraining_sections(jobs, links, jobs_dir),
        section("Runs", *_job_table(jobs, links, jobs_dir)),
        section("Where this is from", _provenance(summary, jobs, jobs_dir)),
        element("footer", "Written by medinit_jax from summary.json and jobs.json."),
    )


def _link(job: Path, folder: Path) -> str:
    """Returns the way from the page to a run's own page, or to its folder if it has none."""
    page = job / "report.html"
    return os.path.relpath(page if page.is_file() else job, folder)


def _figures(
    summary: Mapping[str, Any], rows: Sequence[tables.Row], links: Mapping[str, str]
) -> Html:
    starts = summary["starts"]
    if KINDS[summary["study"]].judged == "validation":
        return start_tables.validation_table(rows, starts, links)
    if len(starts) >= MANY:
        return start_tables.start_table(rows, starts, links)
    return tables.comparison_table(rows, starts, links)


def _differences(rows: Sequence[tables.Row], starts: int) -> Html | None:
    held = tables.difference_table(rows)
    if held is None or starts < MANY:
        return held
    return folded("All differences to random initialization, with their tests", held)


def _opening(summary: dict[str, Any], rows: Sequence[dict[str, Any]]) -> Html:
    study = summary["study"]
    counts = (
        f"{summary['jobs_done']} runs done, {summary['jobs_failed']} failed, "
        f"{summary['jobs_open']} open; {len(summary['seeds'])} seed(s)."
    )
    return element(
        "header",
        element("p", f"medinit_jax · {study} · size {summary['size']}", class_="kicker"),
        element("h1", headline(rows, summary)),
        element("p", f"{KINDS[study].title}. {counts}", class_="lead"),
        [element("p", text) for text in [*reading(rows, summary), *summary["notes"]]],
    )


def _job_table(jobs: Sequence[dict[str, Any]], links: dict[str, str], jobs_dir: Path) -> list[Html]:
    lines = []
    for job in jobs:
        held = _summary(jobs_dir / job["id"])
        best = held.get("best", {})
        lines.append(
            [
                element("a", job["name"], href=links[job["id"]]),
                job["status"] + (f": {job['reason']}" if job["reason"] else ""),
                fixed(best.get("test", {}).get("metric"), 4),
                fixed(best.get("validation"), 4),
                duration(held.get("seconds")),
                job["id"],
            ]
        )
    if not lines:
        return [element("p", "jobs.json is missing, so no run is listed.", class_="absent")]
    heads = ("run", "status", "test", "validation", "time", "job")
    failed = [line for line in lines if not str(line[1]).startswith("done")]
    parts = [table("Failed, blocked or open", heads, failed, texts=2)] if failed else []
    return [*parts, folded(f"All {len(lines)} runs", table("Every run", heads, lines, texts=2))]


def _provenance(
    summary: dict[str, Any], jobs: Sequence[dict[str, Any]], jobs_dir: Path
) -> list[Html]:
    images = {
        f"{source}, {count} images": sha256
        for job in jobs
        for source, count, sha256 in images_of(_summary(jobs_dir / job["id"]))
    }
    return [
        facts(flat(summary["provenance"])),
        folded("Images and their SHA-256", facts(sorted(images.items()))),
    ]


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
