"""The page of a study: what is significant, tables, figures, and where each number is from."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.report import study_figures as figures
from medinit_jax.report import study_tables as tables
from medinit_jax.report.markup import Html, duration, element, fixed
from medinit_jax.report.sections import section
from medinit_jax.report.starts import LEGEND, legend
from medinit_jax.report.style import CSS
from medinit_jax.report.tables import facts, flat, folded, table

TITLES = {
    "hyper_table2": "Table 2: fine-tuning from every start",
    "hyper_fig2": "Figure 2: shares of labels",
    "hyper_fig3": "Figure 3: class activation maps by epoch",
    "hyper_fig4": "Figure 4: convergence",
}


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
    exports = folder / "tables"
    exports.mkdir(exist_ok=True)
    tables.write_csv(exports / f"{summary['study']}.csv", rows)
    tables.write_latex(exports / f"{summary['study']}.tex", rows, summary["starts"])
    page = render(summary, jobs, rows, folder, jobs_dir)
    path = folder / "report.html"
    partial = path.with_suffix(".html.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


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
    links = {job["id"]: os.path.relpath(jobs_dir / job["id"], folder) for job in jobs}
    study = summary["study"]
    body = element(
        "body",
        element(
            "main",
            _opening(summary, rows),
            _figures(study, rows, jobs_dir, summary["starts"]),
            section(
                "All figures",
                tables.comparison_table(rows, summary["starts"], links),
                element(
                    "p",
                    "Bold: beats random initialization, p below 0.05 after Holm’s correction for "
                    "all comparisons on this page. The paper’s figures are of other images "
                    "wherever ours are phantoms, and are no target for them.",
                ),
                tables.difference_table(rows),
            ),
            section("Runs", *_job_table(jobs, links, jobs_dir)),
            section("Where this is from", _provenance(summary, jobs, jobs_dir)),
            element("footer", "Written by medinit_jax from summary.json and jobs.json."),
        ),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", TITLES.get(study, study)),
        element("style", Html(CSS)),
    )
    return Html("<!doctype html>\n" + element("html", head, body, lang="en") + "\n")


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
        element("p", f"{TITLES.get(study, study)}. {counts}", class_="lead"),
        [element("p", text) for text in [*reading(rows, summary), *summary["notes"]]],
    )


def headline(rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> str:
    """Returns in one sentence what the study shows, and no more."""
    tested = [row for row in rows if row["start"] == "hyper" and row["p"] is not None]
    if len(summary["seeds"]) < 2:
        return "One seed: nothing can be claimed beyond these networks on these test images."
    if not tested:
        return "No start was compared with random initialization over two seeds."
    won = sum(tables.beats_random(row) for row in tested)
    lost = sum(
        row["p_holm"] < tables.LEVEL and row["difference"]["best"]["mean"] < 0 for row in tested
    )
    if not won and not lost:
        return f"No significant difference from random initialization in {len(tested)} comparisons."
    return (
        f"The hyper-initializer beats random initialization in {won} of {len(tested)} comparisons "
        f"and falls behind in {lost}."
    )


def reading(rows: Sequence[dict[str, Any]], summary: dict[str, Any]) -> list[str]:
    """Returns what is significant, what is not, and what limits it."""
    found = []
    for start in summary["starts"]:
        if start == "random":
            continue
        tested = [row for row in rows if row["start"] == start and row["difference"]]
        if not tested:
            continue
        differences = [row["difference"]["best"]["mean"] for row in tested]
        won = [row for row in tested if tables.beats_random(row)]
        plain = [row for row in tested if row["p"] is not None and row["p"] < tables.LEVEL]
        found.append(
            f"{str(LEGEND.get(start, start)).capitalize()}: better than random in "
            f"{sum(d > 0 for d in differences)} of {len(tested)} comparisons, by "
            f"{fixed(float(np.mean(differences)), 4)} on average; significant alone in "
            f"{len(plain)}, after correction in {len(won)}."
        )
    by_image = [row for row in rows if row.get("on_images")]
    if by_image:
        sure = [row for row in by_image if row["images_p_holm"] < tables.LEVEL]
        ahead = sum(row["on_images"]["mean"] > 0 for row in sure)
        found.append(
            "Over test images, with the networks as they came out: in "
            f"{len(sure)} of {len(by_image)} comparisons the difference to random is larger than "
            f"the draw of images explains, in {ahead} of them upward. Other seeds may differ."
        )
    if any(row["start"] not in ("random", "imagenet") and row["jobs"] for row in rows):
        found.append(
            "What a start was trained on beforehand (hypernetwork, rotation network) was trained "
            "once, with the first seed; the spread over seeds is that of fine-tuning."
        )
    missing = sum(bool(row["reason"]) for row in rows)
    if missing:
        found.append(f"{missing} of {len(rows)} cells are incomplete; each says why.")
    seeds = len(summary["seeds"])
    if seeds < 5:
        found.append(
            f"{seeds} seed(s) show large differences only: an interval over two seeds is 12.7 "
            "standard errors wide on either side, over three 4.3."
        )
    if summary["phantom"]:
        found.append(
            "All images are drawn by a program. They show that the method runs and what it does on "
            "drawings, not what it does on patients."
        )
    if summary["size"] == "mini":
        found.append(
            "The size mini is made to run through in minutes; its figures are near chance and say "
            "nothing about the method."
        )
    return found


def _figures(
    study: str, rows: Sequence[dict[str, Any]], jobs_dir: Path, starts: Sequence[str]
) -> Any:
    if study == "hyper_fig2":
        return section(
            "Shares of labels",
            legend(starts),
            figures.panels(rows, figures.fraction_panel),
            element("p", "Subsets are nested and stratified; bands are one deviation over seeds."),
        )
    if study == "hyper_fig3":
        return _maps(rows, jobs_dir, starts)
    drawn = figures.panels(rows, figures.convergence_panel)
    parts: list[Any] = [legend(starts), drawn]
    if study == "hyper_fig4":
        lines = [
            [f"{r['task']}, {r['model']}", LEGEND.get(r["start"], r["start"]),
             figures.epochs_text(r)]
            for r in rows
        ]  # fmt: skip
        caption = "Epochs to 95 % of the best that random initialization reaches, per seed"
        parts.append(table(caption, ("task and network", "start", "epochs"), lines, texts=2))
    return section("Convergence on validation images", *parts)


def _maps(rows: Sequence[dict[str, Any]], jobs_dir: Path, starts: Sequence[str]) -> Any:
    parts: list[Any] = [
        element(
            "p",
            "Maps of the true class over the same test images, after each epoch, from each start. "
            "White: the marked finding, where the set marks it.",
        )
    ]
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["jobs"]:
            held = _arrays(jobs_dir / row["jobs"][0] / "cams.npz")
            groups.setdefault((row["task"], row["model"]), {})[row["start"]] = held
    for (task, model), maps in groups.items():
        grid = figures.map_grid(maps)
        parts.append(element("h3", f"{task}, {model}"))
        parts.append(grid or element("p", "No maps were kept.", class_="absent"))
    parts.append(legend(starts))
    for name, text in (
        ("energy", "Share of the map’s energy inside the finding"),
        ("iou", "Overlap of the map’s upper half with the finding"),
        ("drift", "Drift: 1 − correlation with the map after the last epoch"),
    ):
        drawn = figures.panels(rows, figures.cam_panel(name))
        parts += [element("h3", text), drawn]
    return section("Class activation maps", *parts)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}


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
    images: dict[str, str] = {}
    for job in jobs:
        for part, described in _summary(jobs_dir / job["id"]).get("data", {}).items():
            name = f"{described.get('source')} ({part}, {described.get('count')} images)"
            images[name] = str(described.get("sha256", ""))
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
