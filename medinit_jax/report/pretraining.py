"""What was trained before the fine-tunings of a study: labeler, patches, encoders."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medinit_jax.core.errors import UsageError
from medinit_jax.report.markup import (
    DASH,
    Html,
    count,
    duration,
    element,
    fixed,
    is_number,
    percent,
)
from medinit_jax.report.patches import patch_section
from medinit_jax.report.plot import NARROW, responsive
from medinit_jax.report.pretrain_figures import SCALARS, scalar_panel
from medinit_jax.report.sections import section
from medinit_jax.report.tables import table
from medinit_jax.report.workdir import Record, part, read_workdir

Job = Mapping[str, Any]
_ROLE = "pretraining"


def pretraining_sections(
    jobs: Sequence[Job], links: Mapping[str, str], jobs_dir: Path
) -> list[Html]:
    """The sections on what was pretrained; none where nothing was to be.

    Args:
        jobs: Of `jobs.json`.
        links: {job id: link}.
        jobs_dir: Where the jobs are.
    """
    known = [job for job in jobs if job.get("role") == _ROLE]
    if not known:
        return []
    records = {job["id"]: _record(jobs_dir / job["id"]) for job in known}

    def of(*kinds: str) -> list[tuple[Job, Record | None]]:
        return [(job, records[job["id"]]) for job in known if job["kind"] in kinds]

    encoders = of("swcl")
    parts = [
        _labelled_table(of("labeler", "finetune"), links),
        _patch_table(of("patches"), links),
        _warnings([one for one in records.values() if one]),
        _encoder_table(encoders, links),
        _loss_panels(encoders),
    ]
    text = element("p", "Trained once, with the first seed, for all fine-tunings that start from "
                   "it.")  # fmt: skip
    scored = [patch_section(jobs_dir / job["id"]) for job, record in of("patches") if record]
    return [section("Pretraining", text, *parts), *scored]


def _record(folder: Path) -> Record | None:
    try:
        return read_workdir(folder)
    except UsageError:
        return None


def _table(
    caption: str,
    found: Sequence[tuple[Job, Record | None]],
    links: Mapping[str, str],
    heads: Sequence[Any],
    cells: Callable[[dict[str, Any]], Sequence[str]],
) -> Html | None:
    """A line per job: its name, how it ended, and figures of its summary."""
    if not found:
        return None
    lines = [
        [
            element("a", job["name"], href=links[job["id"]]),
            _status(job),
            *cells(record.summary if record else {}),
        ]
        for job, record in found
    ]
    return table(caption, ("run", "status", *heads), lines, texts=2)


def _status(job: Job) -> Html:
    reason = element("span", job["reason"], class_="reason") if job["reason"] else None
    return element("span", job["status"], element("br") if reason else None, reason)


def _labelled_table(
    found: Sequence[tuple[Job, Record | None]], links: Mapping[str, str]
) -> Html | None:
    def cells(summary: dict[str, Any]) -> list[str]:
        best = part(summary, "best", dict)
        test = part(best, "test", dict)
        ends = (test.get("low"), test.get("high"))
        return [
            fixed(test.get("metric"), 4),
            f"{fixed(ends[0])} to {fixed(ends[1])}" if all(map(is_number, ends)) else DASH,
            fixed(best.get("validation"), 4),
            duration(summary.get("seconds")),
        ]

    heads = ("test AUC", "95 % over test images", "validation AUC", "time")
    caption = "Normal against abnormal photographs: labeler and supervised encoders"
    return _table(caption, found, links, heads, cells)


def _patch_table(
    found: Sequence[tuple[Job, Record | None]], links: Mapping[str, str]
) -> Html | None:
    def cells(summary: dict[str, Any]) -> list[str]:
        share = summary.get("share_abnormal")
        return [
            count(summary.get("patients")),
            count(summary.get("patches")),
            percent(round(share, 3) if is_number(share) else None),
            fixed(summary.get("threshold"), 2),
            duration(summary.get("seconds")),
        ]

    heads = ("patients", "patches", "abnormal", "threshold", "time")
    return _table("Patches scored by the labeler", found, links, heads, cells)


def _encoder_table(
    found: Sequence[tuple[Job, Record | None]], links: Mapping[str, str]
) -> Html | None:
    lasts = [part(record.summary, "last", dict) for _, record in found if record]
    # The gradient’s norm tells of steps, not of the encoder.
    kept = [name for name in SCALARS if name != "grad_norm"]
    names = [name for name in kept if any(is_number(last.get(name)) for last in lasts)]

    def cells(summary: dict[str, Any]) -> list[str]:
        last = part(summary, "last", dict)
        return [
            count(summary.get("steps")),
            *(fixed(last.get(name)) for name in names),
            duration(summary.get("seconds")),
        ]

    titles = [element("span", SCALARS[name].title, class_="head") for name in names]
    heads = ("steps", *titles, "time")
    caption = "Encoders, with what was logged last; a run’s own page has the curves"
    return _table(caption, found, links, heads, cells)


def _warnings(records: Sequence[Record]) -> list[Html]:
    """What runs noted of themselves, such as a collapse."""
    return [
        element("p", f"{record.name}: {note}", class_="alarm")
        for record in records
        for note in part(record.summary, "notes", list)
    ]


def _loss_panels(found: Sequence[tuple[Job, Record | None]]) -> list[Html]:
    drawn = {}
    for job, record in found:
        title = f"{job['name']}: loss"
        if record and scalar_panel(record.metrics, "loss", title):
            drawn[job["name"]] = functools.partial(scalar_panel, record.metrics, "loss", title)
    if not drawn:
        return []
    boxes = [
        element(
            "div",
            element("h3", name),
            responsive(draw) if len(drawn) == 1 else draw(NARROW),
            class_="panel",
        )
        for name, draw in drawn.items()
    ]
    return [
        element("h3", "Loss by step; losses of different methods do not compare"),
        boxes[0] if len(boxes) == 1 else element("div", boxes, class_="panels"),
    ]
