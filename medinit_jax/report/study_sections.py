"""The figures of a study's page, with what is needed to read them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medinit_jax.report import study_figures as figures
from medinit_jax.report.looks import legend, look
from medinit_jax.report.markup import Html, element
from medinit_jax.report.sections import section
from medinit_jax.report.study_figures import Row
from medinit_jax.report.study_kinds import Kind
from medinit_jax.report.tables import table


def figure_section(
    kind: Kind, rows: Sequence[Row], jobs_dir: Path, starts: Sequence[str]
) -> Html | None:
    """The section that a study's kind asks for; None if there is nothing to draw.

    Args:
        kind: Of the study.
        rows: Of `study_tables.with_tests`.
        jobs_dir: Where the jobs are.
        starts: Of the study.
    """
    drawn: dict[str, Callable[[], Html | None]] = {
        "shares": lambda: _shares(rows, starts),
        "maps": lambda: _maps(rows, jobs_dir, starts),
        "convergence": lambda: _convergence(rows, starts),
        "epochs": lambda: _convergence(rows, starts, _epochs(rows)),
        "differences": lambda: _differences(rows),
    }
    return drawn[kind.figure]()


def _shares(rows: Sequence[Row], starts: Sequence[str]) -> Html:
    return section(
        "Shares of labels",
        legend(starts),
        figures.panels(rows, figures.fraction_panel),
        element("p", "Subsets are nested and stratified; bands are one deviation over seeds."),
    )


def _convergence(rows: Sequence[Row], starts: Sequence[str], *more: Html) -> Html | None:
    drawn = figures.panels(rows, figures.convergence_panel, apart=("fraction",))
    note = (
        "Mean over seeds with a band of one deviation. Dashed: 95 % of the best that random "
        "initialization reaches."
    )
    if drawn is None:
        return None
    return section(
        "Convergence on validation images", legend(starts), drawn, element("p", note), *more
    )


def _epochs(rows: Sequence[Row]) -> Html:
    lines = [
        [f"{row['task']}, {row['model']}", look(row["start"]).name, figures.epochs_text(row)]
        for row in rows
    ]
    caption = "Epochs to 95 % of the best that random initialization reaches, per seed"
    return table(caption, ("task and network", "start", "epochs"), lines, texts=2)


def _differences(rows: Sequence[Row]) -> Html | None:
    drawn = figures.panels(rows, figures.difference_panel, apart=("fraction",))
    if drawn is None:
        return None
    return section(
        "Differences to random initialization",
        drawn,
        element(
            "p",
            "Test figure at the best validation epoch, minus that from random initialization, "
            "paired over seeds. Bars are 95 % intervals of the mean (Student’s t); one without an "
            "end stroke runs on beyond the panel. Where a bar crosses zero, no difference is "
            "shown. Scales differ from panel to panel.",
        ),
    )


def _maps(rows: Sequence[Row], jobs_dir: Path, starts: Sequence[str]) -> Html:
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
        parts += [element("h3", text), drawn] if drawn else []
    return section("Class activation maps", *parts)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return {}
